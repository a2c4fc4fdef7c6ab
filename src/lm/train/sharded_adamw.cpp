#include "lm/train/sharded_adamw.hpp"

#include <ATen/ops/dot.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lm/cpu/elementwise.hpp"
#include "lm/cpu/thread_team.hpp"
#include "lm/torch/device.hpp"
#include "lm/torch/nccl_group.hpp"
#include "lm/train/host_backend.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kPiece = 1 << 18;

// Calls work(piece, begin, end) for pieces of [0, size), cut the same for any number of threads.
void for_pieces(ThreadTeam& team, int64_t size,
                const std::function<void(int64_t, int64_t, int64_t)>& work) {
  const int64_t pieces = (size + kPiece - 1) / kPiece;
  const auto share = [&](int thread) {
    for (int64_t i = thread; i < pieces; i += team.size()) {
      work(i, i * kPiece, std::min(size, (i + 1) * kPiece));
    }
  };
  if (pieces > 1) {
    team.run(share);
  } else {
    share(0);
  }
}

double square_sum(ThreadTeam& team, const float* values, int64_t size) {
  std::vector<double> sums(static_cast<size_t>(size / kPiece + 1));
  for_pieces(team, size, [&](int64_t piece, int64_t begin, int64_t end) {
    sums[static_cast<size_t>(piece)] = elementwise().sum_of_squares(values + begin, end - begin);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

// On a device, without another tensor of that size.
void add_square_sum(at::Tensor& sum, const at::Tensor& values) {
  constexpr int64_t kPart = int64_t{1} << 26;
  for (int64_t begin = 0; begin < values.numel(); begin += kPart) {
    const at::Tensor part = values.narrow(0, begin, std::min(kPart, values.numel() - begin));
    sum += at::dot(part, part);
  }
}

}  // namespace

struct ShardedAdamW::Group {
  c10::intrusive_ptr<c10d::Backend> backend;
  std::vector<c10::intrusive_ptr<c10d::Work>> pending = {};
};

ShardedAdamW::ShardedAdamW(Transformer::Impl& model, const TrainConfig& config,
                           const HostCollectives& host, int64_t bucket_bytes)
    : model_(model),
      config_(config),
      rank_(host.rank),
      size_(host.size),
      buckets_(model.layout, host.size, bucket_bytes / static_cast<int64_t>(sizeof(float))),
      clock_(model.parameters.device()) {
  model_.pad_to(buckets_.padded());
  first_ = at::zeros({buckets_.padded() / size_}, model_.parameters.options());
  second_ = at::zeros_like(first_);
  if (size_ == 1) return;
  group_ = std::make_unique<Group>();
  if (model_.device.device == "cuda") {
    group_->backend = make_nccl_group(host);
  } else {
    group_->backend = c10::make_intrusive<HostBackend>(host);
  }
}

ShardedAdamW::~ShardedAdamW() {
  // NCCL's group would abort what is under way, of which there is nothing here.
  if (group_ && group_->backend) group_->backend->shutdown();
}

at::Tensor ShardedAdamW::piece(const at::Tensor& flat, const GradientBucket& bucket) const {
  return flat.narrow(0, bucket.begin + rank_ * bucket.piece, bucket.piece);
}

GradientsReady ShardedAdamW::gradients_ready() {
  if (size_ == 1) return {};
  return [this](int64_t begin, int64_t end) {
    buckets_.ready(begin, end);
    while (buckets_.next_is_ready()) reduce_next_bucket();
  };
}

// In place: the own piece becomes the sum.
void ShardedAdamW::reduce_next_bucket() {
  const GradientBucket& bucket = buckets_.pop();
  at::Tensor whole = model_.gradients.narrow(0, bucket.begin, bucket.piece * size_);
  at::Tensor mine = piece(model_.gradients, bucket);
  group_->pending.push_back(
      group_->backend->_reduce_scatter_base(mine, whole, c10d::ReduceScatterOptions()));
}

void ShardedAdamW::wait_for_pending(const char* what) {
  const PhaseClock::Scope scope(clock_, what, &PhaseSeconds::communication);
  for (const auto& work : group_->pending) work->wait();
  group_->pending.clear();
}

ShardedAdamW::StepResult ShardedAdamW::reduce(const RankReport& mine) {
  if (size_ > 1) {
    while (!buckets_.all_popped()) reduce_next_bucket();
    wait_for_pending("wait for reduce-scatter");
    buckets_.reset();
  }
  double square = 0;
  {
    const PhaseClock::Scope scope(clock_, "gradient norm", &PhaseSeconds::optimizer);
    at::Tensor on_device = at::zeros({}, model_.gradients.options().dtype(at::kDouble));
    for (const GradientBucket& bucket : buckets_.all()) {
      const at::Tensor mine = piece(model_.gradients, bucket);
      if (mine.is_cpu()) {
        square += square_sum(*model_.team, mine.const_data_ptr<float>(), mine.numel());
      } else {
        add_square_sum(on_device, mine);
      }
    }
    square += on_device.item<double>();
  }
  if (size_ == 1) return {std::sqrt(square), {mine.loss}, mine.stop, mine.written, mine.counted};

  // One small all-reduce for all: the square sum, a slot per rank for the losses, who was asked to
  // stop, what counts, how many have written.
  const PhaseClock::Scope scope(clock_, "all-reduce", &PhaseSeconds::communication);
  at::Tensor numbers = at::zeros({4 + size_}, at::kFloat);
  numbers[0] = square;
  numbers[1 + rank_] = mine.loss;
  numbers[1 + size_] = mine.stop ? 1.0 : 0.0;
  numbers[2 + size_] = mine.counted;
  numbers[3 + size_] = mine.written ? 1.0 : 0.0;
  std::vector<at::Tensor> list = {numbers.to(model_.gradients.device())};
  group_->backend->allreduce(list, c10d::AllreduceOptions())->wait();
  const at::Tensor summed = list[0].to(at::kCPU);
  const float* values = summed.const_data_ptr<float>();
  return {std::sqrt(static_cast<double>(values[0])),
          {values + 1, values + 1 + size_},
          values[1 + size_] > 0,
          values[3 + size_] == static_cast<float>(size_),
          static_cast<double>(values[2 + size_]) / size_};
}

void ShardedAdamW::update(const GradientBucket& bucket, AdamStep step) {
  // Matrices decay, the norm weights behind them do not.
  const int64_t begin = bucket.begin + rank_ * bucket.piece;
  const int64_t decaying = std::clamp<int64_t>(model_.layout.decay_size - begin, 0, bucket.piece);
  float* parameters = model_.parameters.data_ptr<float>() + begin;
  float* gradients = model_.gradients.data_ptr<float>() + begin;
  float* first = first_.data_ptr<float>() + bucket.shard_begin;
  float* second = second_.data_ptr<float>() + bucket.shard_begin;
  const auto range = [&](int64_t from, int64_t to, double decay) {
    step.weight_decay = static_cast<float>(decay);
    if (!first_.is_cpu()) {
      cuda_device().adamw(parameters + from, gradients + from, first + from, second + from,
                          to - from, step);
      return;
    }
    for_pieces(*model_.team, to - from, [&](int64_t, int64_t piece_begin, int64_t piece_end) {
      const int64_t at = from + piece_begin;
      elementwise().adamw(parameters + at, gradients + at, first + at, second + at,
                          piece_end - piece_begin, step);
    });
  };
  range(0, decaying, config_.weight_decay);
  range(decaying, bucket.piece, 0);
}

void ShardedAdamW::gather_parameters(const GradientBucket& bucket) {
  at::Tensor whole = model_.parameters.narrow(0, bucket.begin, bucket.piece * size_);
  at::Tensor mine = piece(model_.parameters, bucket);
  group_->pending.push_back(
      group_->backend->_allgather_base(whole, mine, c10d::AllgatherOptions()));
}

void ShardedAdamW::update_all(int64_t t, double lr, const StepResult& result) {
  const auto time = static_cast<double>(t + 1);
  AdamStep step{};
  step.lr = static_cast<float>(lr);
  step.beta1 = static_cast<float>(config_.adam_beta1);
  step.beta2 = static_cast<float>(config_.adam_beta2);
  step.eps = static_cast<float>(config_.adam_eps);
  step.correction1 = static_cast<float>(1 - std::pow(config_.adam_beta1, time));
  step.correction2_root = static_cast<float>(std::sqrt(1 - std::pow(config_.adam_beta2, time)));
  double scale = 1 / result.counted;
  if (config_.grad_clip > 0 && result.gradient_norm > config_.grad_clip) {
    scale *= config_.grad_clip / result.gradient_norm;
  }
  step.gradient_scale = static_cast<float>(scale);
  {
    const PhaseClock::Scope scope(clock_, "AdamW", &PhaseSeconds::optimizer);
    for (const GradientBucket& bucket : buckets_.all()) {
      update(bucket, step);
      if (size_ == 1) continue;
      gather_parameters(bucket);  // meanwhile the next one is updated
    }
  }
  if (size_ > 1) wait_for_pending("wait for all-gather");
}

bool ShardedAdamW::StepResult::finite() const {
  return std::isfinite(gradient_norm) &&
         std::all_of(losses.begin(), losses.end(), [](double loss) { return std::isfinite(loss); });
}

double ShardedAdamW::StepResult::mean_loss() const {
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
}

ShardedAdamW::StepResult ShardedAdamW::step(int64_t t, double lr, const RankReport& mine,
                                            const std::function<bool(const StepResult&)>& accept) {
  StepResult result = reduce(mine);
  if (result.counted <= 0) result.counted = 1;  // nothing counts, and all is zero
  result.gradient_norm /= result.counted;
  for (double& each : result.losses) each /= result.counted;
  const bool accepted = std::isfinite(result.gradient_norm) && (!accept || accept(result));
  if (accepted) update_all(t, lr, result);
  // On the CPU AdamW leaves zeros behind; the other ranks' pieces hold what was sent.
  if (!accepted || size_ > 1 || !first_.is_cpu()) model_.gradients.zero_();
  return result;
}

ShardedAdamW::Shards ShardedAdamW::copy_shards() const {
  const auto copy = [](const at::Tensor& tensor) {
    return tensor.to(at::kCPU, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  };
  Shards shards{at::empty(first_.sizes(), at::kFloat), copy(first_), copy(second_)};
  for (const GradientBucket& bucket : buckets_.all()) {
    shards.parameters.narrow(0, bucket.shard_begin, bucket.piece)
        .copy_(piece(model_.parameters, bucket));
  }
  return shards;
}

void ShardedAdamW::set_shards(const Shards& shards) {
  first_.copy_(shards.first);
  second_.copy_(shards.second);
  for (const GradientBucket& bucket : buckets_.all()) {
    piece(model_.parameters, bucket)
        .copy_(shards.parameters.narrow(0, bucket.shard_begin, bucket.piece));
    if (size_ > 1) gather_parameters(bucket);
  }
  if (size_ > 1) wait_for_pending("wait for all-gather");
}

}  // namespace smalltalk
