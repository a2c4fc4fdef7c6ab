// The files of a run and of a sweep that a report reads, each behind a NUL.
#include "fuzz.hpp"
#include "smalltalk/mixture/report/report.hpp"

extern "C" int fuzz_report(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  constexpr const char* kNames[] = {
      "results.json", "experts/0/metrics.jsonl", "routing.jsonl",        "sharding.json",
      "seconds.json", "experiment.toml",         "comparison-test.json", "tasks.json",
      "sweep.json"};
  const auto parts = fuzz::split(fuzz::text_of(data, size), std::size(kNames));
  for (size_t i = 0; i < std::size(kNames); ++i) {
    fuzz::write_file(std::string("run/") + kNames[i], i < parts.size() ? parts[i] : "");
  }
  for (const auto render : {render_report, render_sweep}) {
    const std::string page = render(fuzz::folder() / "run");
    fuzz::require(page.ends_with("</html>\n"), "the page is not whole");
  }
  return 0;
}
