// How fast this machine trains and scores the models that matter, and how fast it multiplies
// matrices in the same process, so that a change of speed can be told from a change of machine.
#pragma once

#include <string>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

struct BenchCase {
  ModelConfig model;
  int64_t batch_size = 1;
  int64_t seq_length = 1024;
  bool train = true;  // a training step; else scoring
};

struct BenchResult {
  double tokens_per_second = 0;
  double model_flops_per_second = 0;  // by the formulas of core/experiment/flops.hpp
  double gemm_flops_per_second = 0;   // of large products on as many threads
  double seconds_per_step = 0;
  double page_faults_per_step = 0;  // of this process, while measuring
  int64_t parameters = 0;
  int64_t peak_memory_bytes = 0;  // of this process
};

// "router-step": a training step of the paper's router (H 96, L 12, V 32,000, 32 x 256);
// "router-score": scoring with it; "tiny-step": H 128, L 4, V 4,096, 32 x 256; "expert-step":
// H 384, L 6, V 32,000, 8 x 512; "gpt2-step": GPT-2's size (H 768, L 12, V 50,257, 4 x 64);
// "custom-step", "custom-score": the defaults of ModelConfig, to be overridden.
const std::vector<std::string>& bench_names();
// Error: unknown name.
BenchCase bench_case(const std::string& name);

// Works for about `seconds`, at least one step. Call configure_runtime() first.
BenchResult run_bench(const BenchCase& bench, double seconds, const DeviceConfig& device);

}  // namespace smalltalk
