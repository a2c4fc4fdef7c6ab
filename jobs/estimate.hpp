// What a run will take, from its experiment alone: printed by `launch --dry-run`.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "smalltalk/comm/rank_plan.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/lm/train/memory.hpp"
#include "smalltalk/lm/train/roofline.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// How large the training corpus is.
enum class CorpusSize {
  counted,  // its tokens are there
  guessed,  // from the size of the text
  assumed,  // there is no text: as much as the experts train on, or a round takes
};

// Of training one model, on each device of its group.
struct ModelEstimate {
  std::string name;  // "an expert"
  int64_t parameters = 0;
  MemoryEstimate memory;
  int64_t micro_batch = 0;  // with which that is; on a GPU, if the key is 0, what 80 GB hold
  Recompute recompute = Recompute::none;                // likewise, if the key is auto
  std::vector<std::pair<std::string, StepTime>> steps;  // by GPU; empty on a CPU
};

struct Estimate {
  MixtureFlops flops;
  double baseline_flops = 0;          // of all models beside the mixture
  std::vector<ModelEstimate> models;  // one for each size
  double disk_bytes = 0;              // tokens, checkpoints, models, shards, scores
  double score_bytes = 0;             // sent by each rank, over all rounds of the EM
  double flops_per_second = 0;        // per device: device.flops_per_second, or an assumption
  double seconds = 0;                 // of the busiest rank, at that rate
  int64_t num_sequences = 0;          // of the training corpus
  CorpusSize corpus = CorpusSize::counted;
  bool orders_documents = false;  // by the job `order`
};

Estimate estimate(const Run& run, const RankPlan& plan);
std::string describe(const Estimate& estimate);
// Error if the file system of the run folder has not that much room.
void require_disk_space(const Run& run, const Estimate& estimate);

}  // namespace smalltalk
