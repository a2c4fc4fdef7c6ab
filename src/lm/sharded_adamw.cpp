#include "sharded_adamw.hpp"

#include <algorithm>
#include <cmath>

#include "device.hpp"
#include "host_backend.hpp"
#include "kernels.hpp"
#include "nccl_group.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {

ShardedAdamW::ShardedAdamW(Transformer::Impl& model, const TrainConfig& config,
                           const HostCollectives& host, const std::string& nccl_rendezvous)
    : model_(model), config_(config), rank_(host.rank), size_(host.size) {
  model_.pad_to(size_);
  shard_size_ = model_.parameters.numel() / size_;
  first_ = at::zeros({shard_size_}, model_.parameters.options());
  second_ = at::zeros_like(first_);
  if (size_ == 1) {
    shard_ = model_.parameters;
    gradient_ = model_.gradients;
    return;
  }
  shard_ = at::empty_like(first_);
  gradient_ = at::empty_like(first_);
  if (model_.device.device == "cuda") {
    group_ = make_nccl_group(host, nccl_rendezvous);
  } else {
    group_ = c10::make_intrusive<HostBackend>(host);
  }
}

ShardedAdamW::StepResult ShardedAdamW::reduce(double loss) {
  if (size_ > 1) {
    group_->_reduce_scatter_base(gradient_, model_.gradients, c10d::ReduceScatterOptions())->wait();
  }
  const double square = gradient_.is_cpu()
                            ? sum_of_squares(gradient_.const_data_ptr<float>(), shard_size_)
                            : gradient_.square().sum(at::kDouble).item<double>();
  if (size_ == 1) return {std::sqrt(square), {loss}};

  // One small all-reduce for both: the square sum, and a slot per rank for the losses.
  at::Tensor numbers = at::zeros({1 + size_}, at::kFloat);
  numbers[0] = square;
  numbers[1 + rank_] = loss;
  std::vector<at::Tensor> list = {numbers.to(gradient_.device())};
  group_->allreduce(list, c10d::AllreduceOptions())->wait();
  const at::Tensor summed = list[0].to(at::kCPU);
  const float* values = summed.const_data_ptr<float>();
  return {std::sqrt(static_cast<double>(values[0])), {values + 1, values + 1 + size_}};
}

void ShardedAdamW::update(int64_t t, double lr, double gradient_norm) {
  const auto time = static_cast<double>(t + 1);
  AdamStep step{};
  step.lr = static_cast<float>(lr);
  step.beta1 = static_cast<float>(config_.adam_beta1);
  step.beta2 = static_cast<float>(config_.adam_beta2);
  step.eps = static_cast<float>(config_.adam_eps);
  step.correction1 = static_cast<float>(1 - std::pow(config_.adam_beta1, time));
  step.correction2_root = static_cast<float>(std::sqrt(1 - std::pow(config_.adam_beta2, time)));
  step.gradient_scale = 1;
  if (config_.grad_clip > 0 && gradient_norm > config_.grad_clip) {
    step.gradient_scale = static_cast<float>(config_.grad_clip / gradient_norm);
  }
  if (size_ > 1) shard_.copy_(model_.parameters.narrow(0, rank_ * shard_size_, shard_size_));
  // Matrices decay, the norm weights behind them do not.
  const int64_t decaying =
      std::clamp<int64_t>(model_.layout.decay_size - rank_ * shard_size_, 0, shard_size_);
  const auto apply = shard_.is_cpu() ? adamw : device_adamw;
  const auto range = [&](int64_t begin, int64_t end, double decay) {
    step.weight_decay = static_cast<float>(decay);
    apply(shard_.data_ptr<float>() + begin, gradient_.const_data_ptr<float>() + begin,
          first_.data_ptr<float>() + begin, second_.data_ptr<float>() + begin, end - begin, step);
  };
  range(0, decaying, config_.weight_decay);
  range(decaying, shard_size_, 0);
  if (size_ > 1) {
    group_->_allgather_base(model_.parameters, shard_, c10d::AllgatherOptions())->wait();
  }
}

ShardedAdamW::StepResult ShardedAdamW::step(int64_t t, double lr, double loss) {
  const StepResult result = reduce(loss);
  if (std::isfinite(result.gradient_norm)) update(t, lr, result.gradient_norm);
  model_.gradients.zero_();
  return result;
}

at::Tensor ShardedAdamW::gather(const at::Tensor& shard) {
  if (size_ == 1) return shard.to(at::kCPU);
  at::Tensor whole = at::empty_like(model_.parameters), mine = shard;
  group_->_allgather_base(whole, mine, c10d::AllgatherOptions())->wait();
  return whole.to(at::kCPU);
}

void ShardedAdamW::set_moments(const at::Tensor& first, const at::Tensor& second) {
  first_.copy_(first.narrow(0, rank_ * shard_size_, shard_size_));
  second_.copy_(second.narrow(0, rank_ * shard_size_, shard_size_));
}

}  // namespace smalltalk
