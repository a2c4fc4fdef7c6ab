#include "smalltalk/core/experiment/learning_rate.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

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

}  // namespace

double learning_rate(const Schedule& schedule, int64_t step) {
  if (step < schedule.warmup_steps) {
    return schedule.lr * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
  }
  if (schedule.decay == Decay::constant) return schedule.lr;
  if (step >= schedule.steps) return schedule.min_lr;
  const bool stable_first = schedule.decay == Decay::wsd || schedule.decay == Decay::wsd_sqrt;
  const int64_t begin =
      stable_first ? schedule.steps - schedule.decay_steps : schedule.warmup_steps;
  if (step <= begin) return schedule.lr;
  const double progress =
      static_cast<double>(step - begin) / static_cast<double>(schedule.steps - begin);
  return schedule.min_lr +
         (schedule.lr - schedule.min_lr) * left_of_decay(schedule.decay, progress);
}

}  // namespace smalltalk
