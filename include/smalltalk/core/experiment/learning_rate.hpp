// Learning-rate schedules. Step t counts from 0; warm-up is lr * (t + 1) / warmup_steps. Behind it
// the rate stays, or falls to min_lr, where it is at `steps`: from the warm-up on along a cosine or
// a line; or over the last decay_steps only, behind a stable phase (WSD: Hu et al., "MiniCPM"),
// along a line or like 1 - sqrt (Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond
// Fixed Training Durations").
#pragma once

#include <cstdint>
#include <string>

namespace smalltalk {

enum class Decay { constant, cosine, linear, wsd, wsd_sqrt };

struct Schedule {
  double lr = 0;
  double min_lr = 0;
  int64_t warmup_steps = 0;
  int64_t steps = 0;
  Decay decay = Decay::cosine;
  int64_t decay_steps = 0;  // of wsd and wsd_sqrt
};

double learning_rate(const Schedule& schedule, int64_t step);

}  // namespace smalltalk
