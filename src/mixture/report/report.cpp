#include "smalltalk/mixture/report/report.hpp"

#include <fmt/format.h>

#include "mixture/report/data.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

using namespace report;

std::string facts(const RunData& data) {
  std::string out;
  const auto add = [&](const std::string& label, const std::string& path,
                       std::string (*format)(double)) {
    if (const auto value = number_at(data.results, path)) {
      out += fmt::format("<li><b>{}</b> {}</li>", format(*value), label);
    }
  };
  if (has_mixture(data)) add("experts", "experts", whole);
  add("tokens a sequence", "seq_length", whole);
  if (has_mixture(data)) add("tokens of prefix", "prefix_tokens", whole);
  add("training tokens", "corpus/train_tokens", human_count);
  add("test tokens", "corpus/test_tokens", human_count);
  add("documents", "corpus/documents", whole);
  add("tokens in the vocabulary", "corpus/vocab_size", whole);
  if (const auto seed = number_at(data.results, "seed"))
    out += "<li>seed <b>" + whole(*seed) + "</b></li>";
  return out.empty() ? "" : "<ul class=\"facts\">" + out + "</ul>";
}

}  // namespace

std::string render_report(const fs::path& run) {
  const RunData data = load_run(run);
  const bool mixture = has_mixture(data);
  const std::string rules = rules_section(data);
  const std::string lory = lory_section(data);
  const std::string examples = examples_section(data);
  const std::string tasks = tasks_section(data);
  std::string problems;
  for (const std::string& problem : data.problems) problems += missing(problem);
  std::string links;
  for (const auto& [id, label, there] :
       {std::tuple{"results", "Perplexity", true}, std::tuple{"tasks", "Tasks", !tasks.empty()},
        std::tuple{"curves", "Loss", true}, std::tuple{"map", "Domains", mixture},
        std::tuple{"experts", "Experts", mixture},
        std::tuple{"examples", "Examples", !examples.empty()},
        std::tuple{"rounds", "Rounds", mixture}, std::tuple{"lory", "Lory", !lory.empty()},
        std::tuple{"rules", "Choosing", !rules.empty()},
        std::tuple{"communication", "Communication", true}, std::tuple{"time", "Time", true},
        std::tuple{"reading", "How to read", true}}) {
    if (there) links += fmt::format("<a href=\"#{}\">{}</a>", id, label);
  }
  return html_page(data.name,
                   "<p class=\"eyebrow\">SmallTalk run <b>" + escape_html(data.name) +
                       "</b></p><h1>" + escape_html(headline(data)) + "</h1>" + facts(data) +
                       "<nav aria-label=\"Sections\">" + links + "</nav>",
                   problems + cards(data) + results_section(data) + tasks + curves_section(data) +
                       (mixture ? routing_map_section(data) : "") + domains_section(data) +
                       (mixture ? experts_section(data) + examples + rounds_section(data) : "") +
                       lory + rules + communication_section(data) + time_section(data) +
                       reading_section() + experiment_section(data));
}

fs::path write_report(const fs::path& folder, fs::path out) {
  const RunLayout layout{folder};
  if (out.empty()) out = layout.report();
  const bool is_sweep =
      fs::exists(SweepLayout{folder}.tables()) && !fs::exists(layout.experiment());
  write_text_atomically(out, is_sweep ? render_sweep(folder) : render_report(folder));
  return out;
}

}  // namespace smalltalk
