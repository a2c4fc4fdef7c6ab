// AdamW on the flat buffers of a model, its state shared out over a group (ZeRO, stage 1,
// Rajbhandari et al. 2020): reduce-scatter of gradients, clipping and AdamW on the own part,
// all-gather of parameters. In buckets, so that gradients are sent while the backward pass goes on
// and parameters while other buckets are updated. A group of one communicates nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

#include "lm/cpu/elementwise.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/phase_clock.hpp"
#include "lm/train/gradient_buckets.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

class ShardedAdamW {
 public:
  // Pads the model's buffers, so that a group can share them out. bucket_bytes: of the gradients
  // that are reduced by one call.
  ShardedAdamW(Transformer::Impl& model, const TrainConfig& config, const HostCollectives& host,
               int64_t bucket_bytes);
  ~ShardedAdamW();

  // For the engine, in the last backward pass before step(): sums a bucket over the group as soon
  // as its gradients are final. Empty in a group of one. Without it step() does it all.
  GradientsReady gradients_ready();

  // What a rank tells its group with a step.
  struct RankReport {
    double loss = 0;       // any number that the caller wants to know of all ranks
    double counted = 1;    // the share of this rank's targets that counts
    bool stop = false;     // it was asked to stop
    bool written = false;  // it has written its share of a file
  };
  struct StepResult {
    double gradient_norm = 0;    // before clipping, of the whole group
    std::vector<double> losses;  // what each rank reported, over the mean of `counted`
    bool stop = false;           // some rank reported it
    bool written = false;        // all ranks reported it
    double counted = 1;          // the mean over the group
    bool finite() const;         // norm and losses
    double mean_loss() const;
  };
  // Applies update t (from 0) with the gradients that this rank has accumulated, and zeroes them.
  // Gradients and losses are means over so many targets of which only a share counts: they are
  // divided by that of the group. Parameters and moments are left untouched if the norm is not
  // finite or `accept`, asked with what all ranks know, says no.
  StepResult step(int64_t t, double lr, const RankReport& mine,
                  const std::function<bool(const StepResult&)>& accept = {});
  // Waiting for the group and computing, since it was made; what goes on behind the backward pass
  // is in neither. Waits for the device.
  PhaseSeconds seconds() { return clock_.seconds(); }

  // Where this rank's shard lies in the flat buffers.
  std::vector<ShardPiece> pieces() const { return buckets_.pieces(rank_); }
  // What this rank owns of parameters and moments: [padded / ranks] float32, in host memory.
  struct Shards {
    at::Tensor parameters, first, second;
  };
  Shards copy_shards() const;
  // Takes them up, and gathers the parameters of the group, which are then whole on every rank.
  // Collective.
  void set_shards(const Shards& shards);

 private:
  // This rank's piece of a bucket in a flat buffer.
  at::Tensor piece(const at::Tensor& flat, const GradientBucket& bucket) const;
  void reduce_next_bucket();
  void wait_for_pending(const char* what);
  void gather_parameters(const GradientBucket& bucket);  // begins to, in place
  StepResult reduce(const RankReport& mine);
  void update(const GradientBucket& bucket, AdamStep step);  // this rank's piece
  void update_all(int64_t t, double lr, const StepResult& result);

  Transformer::Impl& model_;
  TrainConfig config_;
  int rank_, size_;
  GradientBuckets buckets_;
  struct Group;                   // c10d's, whose headers are large
  std::unique_ptr<Group> group_;  // null in a group of one
  at::Tensor first_, second_;     // [padded / ranks]: this rank's pieces, in the order of buckets
  PhaseClock clock_;
};

}  // namespace smalltalk
