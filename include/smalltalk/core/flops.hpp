// FLOPs by the formulas of SmallTalk LM, appendix A.3, extended from plain feed-forward and full
// heads (where they agree exactly) to SwiGLU (three matrices) and grouped heads.
#pragma once

#include <cstdint>

#include "smalltalk/core/experiment.hpp"

namespace smalltalk {

// Forward pass of `sequences` sequences of `length` tokens.
double forward_flops(const ModelConfig& model, int64_t sequences, int64_t length);
// Forward and backward: three times the forward pass.
double train_flops(const ModelConfig& model, int64_t sequences, int64_t length);

// What one run costs. Routers are billed for the prefix tokens that they really see; the paper
// bills S, an upper bound, which `router_train_upper` holds.
struct MixtureFlops {
  double router_train = 0;        // all routers, all rounds
  double router_train_upper = 0;  // the same billed at S tokens per sequence, as the paper does
  double router_scoring = 0;      // E-steps of the EM
  double sharding = 0;            // scoring the experts' training sequences
  double expert_train = 0;        // all experts
  double inference_per_sequence = 0;  // one expert over S tokens and all routers over M
  double total() const { return router_train + router_scoring + sharding + expert_train; }
};
// num_sharded is the number of sequences of the training corpus.
MixtureFlops mixture_flops(const Experiment& experiment, int64_t num_sharded);

// Steps that a dense model of the expert's size needs at `batch` sequences per step until its
// training FLOPs are at least `flops`.
int64_t dense_steps(const Experiment& experiment, int64_t batch, double flops);

int64_t parameter_count(const ModelConfig& model);

}  // namespace smalltalk
