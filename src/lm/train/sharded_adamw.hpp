// AdamW on the flat buffers of a model, its state shared out over a group (ZeRO, stage 1,
// Rajbhandari et al. 2020): reduce-scatter of gradients, clipping and AdamW on the own part,
// all-gather of parameters. In buckets, so that gradients are sent while the backward pass goes on
// and parameters while the next forward pass computes with those that have arrived. Where products
// are in bfloat16, the float32 parameters are shared out, too, and their copies are gathered. A
// group of one communicates nothing. Slices of experts are their rank's alone.
//
// On a GPU a step waits for nothing: what is done with it is decided there (update_launch.hpp), and
// the host reads what it came to later.
#pragma once

#include <ATen/core/Tensor.h>

#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "lm/model/transformer_impl.hpp"
#include "lm/torch/phase_clock.hpp"
#include "lm/torch/update_launch.hpp"
#include "lm/train/gradient_buckets.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

class ShardedAdamW {
 public:
  // Pads the model's buffers, so that a group can share them out. bucket_bytes: of the gradients
  // that are reduced by one call; 0: by the model's size.
  ShardedAdamW(Transformer::Impl& model, const TrainConfig& config, const HostCollectives& host,
               int64_t bucket_bytes);
  ~ShardedAdamW();

  // For the engine in a group: waits for parameters that the step before has sent out, in any
  // micro-batch; sums a bucket of gradients over the group as soon as they are final, in the last
  // one before begin_step(), which does it all otherwise.
  Exchange exchange(bool last_micro_batch);
  // All parameters have arrived. Before the host's collectives are used for anything else.
  void wait_for_parameters();

  // Adds to what this rank tells the others of the step: a sum of -log p.
  void add_loss(const LossSums& losses, int64_t model);

  struct Step {
    double lr = 0;
    double targets = 1;    // of the group's batch, padding among them
    double counted = 1;    // the share of this rank's that count
    bool stop = false;     // this rank was asked to stop
    bool written = false;  // it has written its share of a file
  };
  struct StepResult {
    double gradient_norm = 0;    // before clipping, of the whole group
    std::vector<double> losses;  // of each rank, per target that counts in the mean of the group
    bool stop = false;           // some rank was asked to stop
    bool written = false;        // all ranks have written their shares
    double counted = 1;          // the mean over the group
    bool finite() const;         // norm and losses
    double mean_loss() const;
  };
  using Accept = std::function<bool(const StepResult&)>;
  // Applies the gradients that this rank has accumulated as the next update, and zeroes them. They
  // are of a mean over all targets of which only a share counts: divided by that of the group.
  // Parameters and moments are left untouched if norm or losses are not finite, or if `accept`,
  // asked with what all ranks know, says no: asking waits for the device.
  void begin_step(const Step& step, const Accept& accept = {});
  // What the oldest step came to whose result was not asked for: waits for the device.
  StepResult finish_step();
  int64_t pending() const { return static_cast<int64_t>(results_.size()); }
  // How many steps may well stay pending: those whose result the device does not know yet.
  int64_t late_steps() const { return late_steps_; }

  // Waiting for the group and computing, since it was made; what goes on behind the passes is in
  // neither. Waits for the device.
  PhaseSeconds seconds() { return clock_.seconds(); }

  // Where this rank's shard lies in the flat buffers.
  std::vector<ShardPiece> pieces() const { return buckets_.pieces(rank_); }
  // What this rank owns of parameters and moments: [shard_size] float32, in host memory.
  struct Shards {
    at::Tensor parameters, first, second;
  };
  Shards copy_shards() const;
  // Takes them up, after so many updates, and sends the parameters to the group. Collective.
  void set_shards(const Shards& shards, int64_t updates);

 private:
  // StepSlots on their way to the host.
  struct Numbers {
    at::Tensor on_host;  // float64
    std::unique_ptr<c10::Event> arrived;
    StepResult read() const;
  };
  // This rank's piece of a bucket in a flat buffer, and in what holds only those pieces.
  at::Tensor piece(const at::Tensor& flat, const GradientBucket& bucket) const;
  at::Tensor own(const at::Tensor& shard, const GradientBucket& bucket) const;
  at::Tensor parameters_of(const GradientBucket& bucket) const;
  // What ranks that have cut experts do in a pass: tensors of all ranks one after another along
  // the first dimension, and this rank's part of the sum of such.
  at::Tensor gather_rows(const at::Tensor& mine);
  at::Tensor sum_rows(const at::Tensor& all);
  void reduce_next_bucket();
  void reduce();
  at::Tensor collect(const Step& step);         // StepSlots of this rank
  at::Tensor share(const at::Tensor& numbers);  // summed over ranks
  void update_on_device(const GradientBucket& bucket);
  void update_on_host(const GradientBucket& bucket, AdamStep step);
  void copy_again(const GradientBucket& bucket);         // this rank's piece, in bfloat16
  int64_t decaying(const GradientBucket& bucket) const;  // of this rank's piece
  UpdateState* state() const;
  void send_out(const GradientBucket& bucket);
  void wait_for_parameters(int64_t begin, int64_t end);

  Transformer::Impl& model_;
  UpdateRule rule_;
  int rank_, size_;
  GradientBuckets buckets_;
  const UpdateKernels* kernels_;  // null: the CPU's own code
  int64_t late_steps_;
  struct Group;                   // c10d's, whose headers are large
  std::unique_ptr<Group> group_;  // null in a group of one
  // [shard_size]: this rank's pieces, in the order of buckets. Parameters only if shared out.
  at::Tensor parameters_, first_, second_;
  double host_loss_ = 0;
  int64_t host_updates_ = 0;
  at::Tensor loss_, parts_, state_;  // on the device
  std::deque<Numbers> results_;
  PhaseClock clock_;
};

}  // namespace smalltalk
