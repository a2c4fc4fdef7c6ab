// Learning-rate schedules. Step t counts from 0; warm-up is lr * (t + 1) / warmup_steps. Behind it
// the rate stays, or falls to min_lr, where it is at `steps`: from the warm-up on along a cosine or
// a line; or over the last decay_steps only, behind a stable phase (WSD: Hu et al., "MiniCPM"),
// along a line or like 1 - sqrt (Haegele et al., "Scaling Laws and Compute-Optimal Training Beyond
// Fixed Training Durations").
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

namespace smalltalk {

enum class Decay { constant, cosine, linear, wsd, wsd_sqrt };
inline constexpr std::initializer_list<Decay> kDecays = {
    Decay::constant, Decay::cosine, Decay::linear, Decay::wsd, Decay::wsd_sqrt};
std::string to_string(Decay value);

struct Schedule {
  double lr = 0;
  double min_lr = 0;
  int64_t warmup_steps = 0;
  int64_t steps = 0;
  Decay decay = Decay::cosine;
  int64_t decay_steps = 0;  // of wsd and wsd_sqrt

  // The end of the phase whose rates are the same however many steps there are; 0: there is none
  // but the warm-up. A model as it was then can be trained for longer.
  int64_t end_of_stable_phase() const;
};

double learning_rate(const Schedule& schedule, int64_t step);

// Whether both have so many steps, with the same rates, bit for bit: then what one of them has
// trained so far the other may train on.
bool begin_alike(const Schedule& a, const Schedule& b, int64_t steps);

// In one line, and back, to the same numbers. Error: not such a line.
std::string to_string(const Schedule& schedule);
Schedule parse_schedule(const std::string& line);

}  // namespace smalltalk
