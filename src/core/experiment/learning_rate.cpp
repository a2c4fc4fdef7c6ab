#include "smalltalk/core/experiment/learning_rate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <sstream>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

// What is left of the way from lr to min_lr, of which `progress` lies behind.
double left_of_decay(Decay decay, double progress) {
  switch (decay) {
    case Decay::constant:
      return 1;
    case Decay::cosine:
      return 0.5 * (1 + std::cos(std::numbers::pi * progress));
    case Decay::linear:
    case Decay::wsd:
      return 1 - progress;
    case Decay::wsd_sqrt:
      return 1 - std::sqrt(progress);
  }
  return 1;
}

bool falls_at_its_end(Decay decay) { return decay == Decay::wsd || decay == Decay::wsd_sqrt; }

}  // namespace

std::string to_string(Decay value) {
  switch (value) {
    case Decay::constant:
      return "constant";
    case Decay::cosine:
      return "cosine";
    case Decay::linear:
      return "linear";
    case Decay::wsd:
      return "wsd";
    case Decay::wsd_sqrt:
      return "wsd_sqrt";
  }
  return "";
}

int64_t Schedule::end_of_stable_phase() const {
  if (decay == Decay::constant) return steps;
  return falls_at_its_end(decay) ? steps - decay_steps : 0;
}

double learning_rate(const Schedule& schedule, int64_t step) {
  if (step < schedule.warmup_steps) {
    return schedule.lr * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
  }
  if (schedule.decay == Decay::constant) return schedule.lr;
  if (step >= schedule.steps) return schedule.min_lr;
  const int64_t begin =
      falls_at_its_end(schedule.decay) ? schedule.end_of_stable_phase() : schedule.warmup_steps;
  if (step <= begin) return schedule.lr;
  const double progress =
      static_cast<double>(step - begin) / static_cast<double>(schedule.steps - begin);
  return schedule.min_lr +
         (schedule.lr - schedule.min_lr) * left_of_decay(schedule.decay, progress);
}

bool begin_alike(const Schedule& a, const Schedule& b, int64_t steps) {
  if (a.steps != b.steps && steps > std::min(a.steps, b.steps)) return false;
  for (int64_t step = 0; step < steps; ++step) {
    if (learning_rate(a, step) != learning_rate(b, step)) return false;
  }
  return true;
}

std::string to_string(const Schedule& schedule) {
  return fmt::format("{} {} {} {} {} {}", to_string(schedule.decay), schedule.lr, schedule.min_lr,
                     schedule.warmup_steps, schedule.steps, schedule.decay_steps);
}

Schedule parse_schedule(const std::string& line) {
  std::istringstream words(line);
  Schedule schedule;
  std::string decay;
  words >> decay >> schedule.lr >> schedule.min_lr >> schedule.warmup_steps >> schedule.steps >>
      schedule.decay_steps;
  const auto* known =
      std::ranges::find_if(kDecays, [&](Decay value) { return to_string(value) == decay; });
  if (!words || known == kDecays.end()) throw Error("'" + line + "' is no schedule");
  schedule.decay = *known;
  return schedule;
}

}  // namespace smalltalk
