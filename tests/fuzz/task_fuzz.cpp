// The first byte chooses the prompt.
#include "fuzz.hpp"
#include "smalltalk/mixture/evaluation/tasks.hpp"

extern "C" int fuzz_task(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  if (size < 1) return 0;
  const std::vector<std::string> prompts = prompt_names();
  const auto path = fuzz::write_file("x.jsonl", fuzz::text_of(data + 1, size - 1));
  fuzz::result_or_error("x.jsonl", [&] { read_task(path, prompts[data[0] % prompts.size()]); });
  return 0;
}
