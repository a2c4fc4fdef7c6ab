// The file, then overrides, each behind a NUL.
#include "fuzz.hpp"
#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/experiment/flops.hpp"

extern "C" int fuzz_experiment(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  const auto parts = fuzz::split(fuzz::text_of(data, size), 4);
  const auto path = fuzz::write_file("x.toml", parts[0]);
  Experiment experiment;
  const auto load = [&](const std::string& named, const std::vector<std::string>& overrides) {
    return fuzz::result_or_error(named, [&] { experiment = load_experiment(path, overrides); });
  };
  const std::vector<std::string> overrides(parts.begin() + 1, parts.end());
  if (!load("", overrides)) return 0;
  const std::string text = to_toml(experiment);
  const std::string hash = experiment_hash(experiment);
  mixture_flops(experiment, 1000);
  parameter_count(experiment.expert_model);
  fuzz::write_file("x.toml", text);
  fuzz::require(load("", {}) && to_toml(experiment) == text && experiment_hash(experiment) == hash,
                "the resolved experiment does not read back");
  return 0;
}
