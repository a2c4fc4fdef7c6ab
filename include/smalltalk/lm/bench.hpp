// How fast this machine trains and scores the models that matter, and how fast it multiplies
// matrices in the same process, so that a change of speed can be told from a change of machine.
#pragma once

#include <string>
#include <vector>

#include "smalltalk/core/experiment.hpp"

namespace smalltalk {

struct BenchResult {
  double tokens_per_second = 0;
  double model_flops_per_second = 0;  // by the formulas of core/flops.hpp
  double gemm_flops_per_second = 0;   // of one large product through LibTorch
};

// "router-step": a training step of the paper's router (H 96, L 12, V 32,000, 32 x 256);
// "router-score": scoring with it; "tiny-step": H 128, L 4, V 4,096, 32 x 256; "expert-step":
// H 384, L 6, V 32,000, 8 x 512.
const std::vector<std::string>& bench_names();

// Works for about `seconds`, at least one step. Call configure_runtime() first.
// Error: unknown name.
BenchResult run_bench(const std::string& name, double seconds, const DeviceConfig& device);

}  // namespace smalltalk
