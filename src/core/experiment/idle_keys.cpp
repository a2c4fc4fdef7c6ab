#include "core/experiment/idle_keys.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

// A default is never refused. Nor is what a sweep over another key leaves idle for some of its
// values: the rate of a baseline that is not trained, or an interval longer than the training.
struct Rule {
  std::string_view key;  // with a dot in front: of [router] and of [expert]
  bool (*acts)(const Experiment&, const TrainConfig&);
  const char* why_not;  // {} is the section
};

bool some_model_reaches(const Experiment& e, int64_t step) {
  const MixtureConfig& m = e.mixture;
  const int64_t of_router =
      e.has_mixture() ? m.rounds * (m.sequences_per_round / m.experts / e.router_train.batch_size)
                      : 0;
  // How far the others go depends on the text.
  return step < std::max(of_router, e.expert_train.steps) || e.baselines.dense ||
         e.baselines.dense_large_batch || e.lory.experts > 0;
}

constexpr Rule kRules[] = {
    {"data.tokenizer_sample_bytes",
     [](const Experiment& e, const TrainConfig&) { return e.data.tokenizer.empty(); },
     "data.tokenizer names a tokenizer that is ready"},
    {".min_lr",
     [](const Experiment&, const TrainConfig& train) { return train.lr_decay != Decay::constant; },
     "{}.lr_decay is constant"},
    {".outlier_skip",
     [](const Experiment&, const TrainConfig& train) { return train.outlier_zscore > 0; },
     "{}.outlier_zscore = 0 finds none"},
    {"lory.tensor_parallel",
     [](const Experiment& e, const TrainConfig&) {
       return e.lory.experts > 0 && e.mixture.group_size != 1;
     },
     "no Lory model is trained (lory.experts), or by one rank (mixture.group_size = 1)"},
    {"device.trace_steps",
     [](const Experiment& e, const TrainConfig&) {
       return some_model_reaches(e, e.device.traced_steps().first);
     },
     "no model has so many steps"},
};

bool is_about(const Rule& rule, const std::string& key) {
  return rule.key.starts_with('.') ? key.ends_with(rule.key) : key == rule.key;
}

}  // namespace

void refuse_idle_keys(const Experiment& experiment) {
  for (const KeyDifference& set : differences(Experiment(), experiment)) {
    const std::string section = set.key.substr(0, set.key.find('.'));
    const TrainConfig& train =
        section == "router" ? experiment.router_train : experiment.expert_train;
    for (const Rule& rule : kRules) {
      if (!is_about(rule, set.key) || rule.acts(experiment, train)) continue;
      throw Error(fmt::format("experiment: {} = {} has no effect: {}. Leave it out", set.key,
                              set.here, fmt::format(fmt::runtime(rule.why_not), section)));
    }
  }
}

}  // namespace smalltalk
