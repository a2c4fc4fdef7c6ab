// FLOPs by the formulas of SmallTalk LM, appendix A.3, extended from plain feed-forward and full
// heads (where they agree exactly) to SwiGLU (three matrices) and grouped heads.
#pragma once

#include <cstdint>
#include <functional>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// Forward pass of `sequences` sequences of `length` tokens.
double forward_flops(const ModelConfig& model, int64_t sequences, int64_t length);
// Forward and backward: three times the forward pass.
double train_flops(const ModelConfig& model, int64_t sequences, int64_t length);

// What one run costs. The paper bills S tokens per sequence for training a router, though it sees
// M: an upper bound.
struct MixtureFlops {
  double router_train = 0;            // all routers, all rounds, at M tokens per sequence
  double router_train_upper = 0;      // the same at S tokens per sequence, as the paper bills it
  double router_scoring = 0;          // E-steps of the EM
  double sharding = 0;                // telling the experts' training sequences apart
  double expert_train = 0;            // all experts
  double inference_per_sequence = 0;  // one expert over S tokens and all routers over M
  // What a dense model is matched with: the paper's upper bound for the routers, which favours it.
  double total() const { return router_train_upper + router_scoring + sharding + expert_train; }
};
// num_sharded is the number of sequences of the training corpus. Zeros without a mixture.
MixtureFlops mixture_flops(const Experiment& experiment, int64_t num_sharded);

// What all other models may spend: the FLOPs of the mixture; without one, those of a dense model in
// the steps of an expert.
double training_budget(const Experiment& experiment, int64_t num_sharded);

// Of training a dense model of the expert's size, `batch` sequences a step.
double dense_flops(const Experiment& experiment, int64_t batch, int64_t steps);
// Of training the Lory model, in whose first steps it is dense: in lory_dense_steps() of `steps`.
double lory_flops(const Experiment& experiment, int64_t batch, int64_t steps);
int64_t lory_dense_steps(const Experiment& experiment, int64_t steps);

// The fewest steps that take at least `flops`, by what n steps take, which grows with n.
int64_t steps_for(double flops, const std::function<double(int64_t)>& flops_of);

int64_t parameter_count(const ModelConfig& model);

}  // namespace smalltalk
