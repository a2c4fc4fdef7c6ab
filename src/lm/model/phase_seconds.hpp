// Where the time of training steps goes.
#pragma once

namespace smalltalk {

// Sums over steps, of one rank. What computes a phase keeps such sums from its construction on; who
// wants those of an interval takes the difference. Work that goes on behind another phase (tokens
// read ahead, gradients sent during the backward pass) counts only as far as it was waited for.
struct PhaseSeconds {
  double data = 0;     // waiting for tokens
  double forward = 0;  // loss included
  double backward = 0;
  double communication = 0;  // waiting for other ranks
  double optimizer = 0;

  PhaseSeconds operator+(const PhaseSeconds& b) const {
    return {data + b.data, forward + b.forward, backward + b.backward,
            communication + b.communication, optimizer + b.optimizer};
  }
  PhaseSeconds operator-(const PhaseSeconds& b) const {
    return {data - b.data, forward - b.forward, backward - b.backward,
            communication - b.communication, optimizer - b.optimizer};
  }
};

}  // namespace smalltalk
