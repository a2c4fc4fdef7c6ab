#include "smalltalk/core/experiment/learning_rate.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace smalltalk {

double learning_rate(const Schedule& schedule, int64_t step) {
  if (step < schedule.warmup_steps) {
    return schedule.lr * static_cast<double>(step + 1) / static_cast<double>(schedule.warmup_steps);
  }
  if (schedule.decay == Decay::constant) return schedule.lr;
  if (step >= schedule.steps) return schedule.min_lr;
  const double progress = static_cast<double>(step - schedule.warmup_steps) /
                          static_cast<double>(schedule.steps - schedule.warmup_steps);
  return schedule.min_lr +
         0.5 * (schedule.lr - schedule.min_lr) * (1 + std::cos(std::numbers::pi * progress));
}

}  // namespace smalltalk
