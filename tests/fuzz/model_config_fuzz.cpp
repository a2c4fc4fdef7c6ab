#include "fuzz.hpp"
#include "lm/model/model_config_file.hpp"
#include "lm/model/parameter_layout.hpp"

extern "C" int fuzz_model_config(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  const auto path = fuzz::write_file("config.json", fuzz::text_of(data, size));
  ModelConfig config;
  if (!fuzz::result_or_error("config.json", [&] { config = read_model_config(path); })) return 0;
  if (!fuzz::result_or_error("model: ", [&] { parameter_layout(config.resolved()); })) return 0;
  // What is taken is written and read as the same.
  const std::string text = model_config_text(config, {});
  const ModelConfig again = read_model_config(fuzz::write_file("config.json", text));
  fuzz::require(model_config_text(again, {}) == text, "reads back as another model");
  return 0;
}
