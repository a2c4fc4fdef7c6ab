// AdamW on the flat buffers of a model, its state shared out over a group (ZeRO, stage 1,
// Rajbhandari et al. 2020): reduce-scatter of gradients, clipping and AdamW on the own part,
// all-gather of parameters. A group of one communicates nothing.
#pragma once

#include <ATen/ATen.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "smalltalk/core/collectives.hpp"
#include "transformer_impl.hpp"

namespace smalltalk {

class ShardedAdamW {
 public:
  // Pads the model's buffers to a multiple of the group.
  ShardedAdamW(Transformer::Impl& model, const TrainConfig& config, const HostCollectives& host,
               const std::string& nccl_rendezvous);

  struct StepResult {
    double gradient_norm = 0;    // before clipping, of the whole group
    std::vector<double> losses;  // what each rank passed as `loss`
  };
  // Applies step t (from 0) with the gradients that this rank has accumulated, and zeroes them.
  // `loss` is any number the caller wants to know of all ranks. Parameters are left untouched if
  // the norm is not finite.
  StepResult step(int64_t t, double lr, double loss);

  // First and second moments in host memory, whole; all ranks of the group must call.
  at::Tensor gather_first() { return gather(first_); }
  at::Tensor gather_second() { return gather(second_); }
  // Takes up whole moments.
  void set_moments(const at::Tensor& first, const at::Tensor& second);

  int rank() const { return rank_; }
  int size() const { return size_; }

 private:
  at::Tensor gather(const at::Tensor& shard);
  StepResult reduce(double loss);
  void update(int64_t t, double lr, double gradient_norm);

  Transformer::Impl& model_;
  TrainConfig config_;
  int rank_, size_;
  c10::intrusive_ptr<c10d::Backend> group_;  // null in a group of one
  int64_t shard_size_ = 0;
  at::Tensor first_, second_;    // [shard]
  at::Tensor shard_, gradient_;  // [shard]: own part of parameters and of summed gradients
};

}  // namespace smalltalk
