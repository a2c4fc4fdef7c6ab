// Learning-rate schedules. Step t counts from 0; warm-up is lr * (t + 1) / warmup_steps, then
// constant, or a cosine from lr to min_lr that ends at `steps`.
#pragma once

#include <cstdint>
#include <string>

namespace smalltalk {

enum class Decay { constant, cosine };

struct Schedule {
  double lr = 0;
  double min_lr = 0;
  int64_t warmup_steps = 0;
  int64_t steps = 0;
  Decay decay = Decay::cosine;
};

double learning_rate(const Schedule& schedule, int64_t step);

}  // namespace smalltalk
