#include "lm/train/sharded_adamw.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lm/cpu/elementwise.hpp"
#include "lm/cpu/thread_team.hpp"
#include "lm/torch/block_ops.hpp"
#include "lm/torch/device.hpp"
#include "lm/torch/nccl_group.hpp"
#include "lm/train/host_backend.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/trace.hpp"

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

}  // namespace

struct ShardedAdamW::Group {
  c10::intrusive_ptr<c10d::Backend> backend;
  using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;
  Works sums;                   // of gradients, under way
  std::vector<Works> arriving;  // parameters of each bucket

  void sum(at::Tensor mine, at::Tensor whole) {
    sums.push_back(backend->_reduce_scatter_base(mine, whole, c10d::ReduceScatterOptions()));
  }
  void gather(size_t bucket, at::Tensor whole, at::Tensor mine) {
    arriving[bucket].push_back(backend->_allgather_base(whole, mine, c10d::AllgatherOptions()));
  }
  static void wait_for(Works& works) {
    for (const auto& work : works) work->wait();
    works.clear();
  }
};

ShardedAdamW::StepResult ShardedAdamW::Numbers::read() const {
  if (arrived) arrived->synchronize();
  const auto* values = on_host.const_data_ptr<double>();
  const int64_t ranks = on_host.numel() - StepSlots::kLosses;
  const double mean = values[StepSlots::kCounted] / static_cast<double>(ranks);
  StepResult result;
  result.counted = mean > 0 ? mean : 1;  // nothing counts, and all is zero
  result.gradient_norm = std::sqrt(values[StepSlots::kSquareSum]) / result.counted;
  for (int64_t i = 0; i < ranks; ++i) {
    result.losses.push_back(values[StepSlots::kLosses + i] / result.counted);
  }
  result.stop = values[StepSlots::kStop] > 0;
  result.written = values[StepSlots::kWritten] == static_cast<double>(ranks);
  return result;
}

ShardedAdamW::ShardedAdamW(Transformer::Impl& model, const TrainConfig& config,
                           const HostCollectives& host, int64_t bucket_bytes)
    : model_(model),
      rule_{config.adam_beta1, config.adam_beta2, config.adam_eps, config.weight_decay,
            config.grad_clip},
      rank_(host.rank),
      size_(host.size),
      buckets_(model.layout, host.size, bucket_floats(bucket_bytes, model.layout.total)),
      kernels_(update_kernels(model.parameters.device())),
      late_steps_(kernels_ == nullptr ? 0 : 1),
      clock_(model.parameters.device()) {
  const auto options = model.parameters.options();
  const auto shard = [&] { return at::zeros({buckets_.shard_size()}, options); };
  if (size_ > 1 && model_.copies.defined()) {
    parameters_ = shard();
    for (const ShardPiece& piece : pieces()) {
      parameters_.narrow(0, piece.shard_begin, piece.size)
          .copy_(model_.parameters.narrow(0, piece.begin, piece.size));
    }
    model_.share_out(buckets_.padded(), buckets_.norms_begin());
  } else {
    model_.pad_to(buckets_.padded());
  }
  first_ = shard();
  second_ = shard();
  if (kernels_ != nullptr) {
    loss_ = at::zeros({1}, options.dtype(at::kDouble));
    parts_ = at::zeros({std::ssize(buckets_.all()) * kSquareParts}, loss_.options());
    state_ = at::zeros({sizeof(UpdateState)}, options.dtype(at::kByte));
  }
  if (size_ == 1) return;
  group_ = std::make_unique<Group>();
  group_->arriving.resize(buckets_.all().size());
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
  return flat.narrow(0, bucket.piece_begin(rank_), bucket.piece);
}

at::Tensor ShardedAdamW::own(const at::Tensor& shard, const GradientBucket& bucket) const {
  return shard.narrow(0, bucket.shard_begin, bucket.piece);
}

at::Tensor ShardedAdamW::parameters_of(const GradientBucket& bucket) const {
  return parameters_.defined() ? own(parameters_, bucket) : piece(model_.parameters, bucket);
}

// ---- Communication ------------------------------------------------------------------------------

Exchange ShardedAdamW::exchange(bool last_micro_batch) {
  if (size_ == 1) return {};
  Exchange exchange;
  exchange.needed = [this](int64_t begin, int64_t end) { wait_for_parameters(begin, end); };
  if (!model_.layout.slice.is_all()) {
    exchange.gather = [this](const at::Tensor& mine) { return gather_rows(mine); };
    exchange.sum = [this](const at::Tensor& all) { return sum_rows(all); };
  }
  if (!last_micro_batch) return exchange;
  exchange.ready = [this](int64_t begin, int64_t end) {
    buckets_.ready(begin, end);
    while (buckets_.next_is_ready()) reduce_next_bucket();
  };
  return exchange;
}

at::Tensor ShardedAdamW::gather_rows(const at::Tensor& given) {
  const TraceSpan span("gather for slices");  // its time is that of the pass
  at::Tensor mine = given.contiguous();
  std::vector<int64_t> sizes = mine.sizes().vec();
  sizes[0] *= size_;
  at::Tensor all = at::empty(sizes, mine.options());
  group_->backend->_allgather_base(all, mine, c10d::AllgatherOptions())->wait();
  return all;
}

at::Tensor ShardedAdamW::sum_rows(const at::Tensor& given) {
  const TraceSpan span("sum of slices");
  at::Tensor all = given.contiguous();
  std::vector<int64_t> sizes = all.sizes().vec();
  sizes[0] /= size_;
  at::Tensor mine = at::empty(sizes, all.options());
  group_->backend->_reduce_scatter_base(mine, all, c10d::ReduceScatterOptions())->wait();
  return mine;
}

// In place: the own piece becomes the sum.
void ShardedAdamW::reduce_next_bucket() {
  const GradientBucket& bucket = buckets_.pop();
  if (!bucket.shared()) return;
  group_->sum(piece(model_.gradients, bucket),
              model_.gradients.narrow(0, bucket.begin, bucket.size));
}

void ShardedAdamW::reduce() {
  if (size_ == 1) return;
  while (!buckets_.all_popped()) reduce_next_bucket();
  const PhaseClock::Scope scope(clock_, "wait for reduce-scatter", &PhaseSeconds::communication);
  Group::wait_for(group_->sums);
  buckets_.reset();
}

void ShardedAdamW::send_out(const GradientBucket& bucket) {
  if (!bucket.shared()) return;
  const auto index = static_cast<size_t>(&bucket - buckets_.all().data());
  const auto whole = [&](const at::Tensor& flat, int64_t begin) {
    return flat.narrow(0, bucket.begin - begin, bucket.size);
  };
  if (!parameters_.defined()) {
    const at::Tensor& flat = model_.parameters;
    return group_->gather(index, whole(flat, 0), piece(flat, bucket));
  }
  group_->gather(index, whole(model_.copies, 0), piece(model_.copies, bucket));
  const int64_t norms_begin = buckets_.norms_begin();
  if (bucket.begin < norms_begin) return;
  group_->gather(index, whole(model_.norms, norms_begin), own(parameters_, bucket));
}

void ShardedAdamW::wait_for_parameters(int64_t begin, int64_t end) {
  if (size_ == 1) return;
  for (size_t i = 0; i < buckets_.all().size(); ++i) {
    const GradientBucket& bucket = buckets_.all()[i];
    const bool overlaps = bucket.begin < end && begin < bucket.end();
    if (!overlaps || group_->arriving[i].empty()) continue;
    const PhaseClock::Scope scope(clock_, "wait for all-gather", &PhaseSeconds::communication);
    Group::wait_for(group_->arriving[i]);
  }
}

void ShardedAdamW::wait_for_parameters() { wait_for_parameters(0, buckets_.padded()); }

// ---- A step -------------------------------------------------------------------------------------

void ShardedAdamW::add_loss(const LossSums& losses, int64_t model) {
  if (losses.on_device != nullptr && kernels_ != nullptr) {
    loss_ += at::from_blob(const_cast<double*>(losses.on_device) + model, {1}, loss_.options());
    return;
  }
  const double loss = losses.values()[static_cast<size_t>(model)];
  if (kernels_ == nullptr) {
    host_loss_ += loss;
  } else {
    loss_ += loss;
  }
}

at::Tensor ShardedAdamW::collect(const Step& step) {
  const PhaseClock::Scope scope(clock_, "gradient norm", &PhaseSeconds::optimizer);
  const int64_t size = StepSlots::size(size_);
  if (kernels_ == nullptr) {
    at::Tensor numbers = at::zeros({size}, at::kDouble);
    auto* values = numbers.data_ptr<double>();
    for (const GradientBucket& bucket : buckets_.all()) {
      const at::Tensor mine = piece(model_.gradients, bucket);
      values[StepSlots::kSquareSum] +=
          square_sum(*model_.team, mine.const_data_ptr<float>(), mine.numel());
    }
    values[StepSlots::kStop] = step.stop ? 1 : 0;
    values[StepSlots::kWritten] = step.written ? 1 : 0;
    values[StepSlots::kCounted] = step.counted;
    values[StepSlots::kLosses + rank_] = std::exchange(host_loss_, 0) * size_ / step.targets;
    return numbers;
  }
  CUstream_st* const stream = stream_of(parts_);
  auto* parts = parts_.data_ptr<double>();
  for (const GradientBucket& bucket : buckets_.all()) {
    const at::Tensor mine = piece(model_.gradients, bucket);
    kernels_->square_sums(mine.const_data_ptr<float>(), mine.numel(),
                          parts + (&bucket - buckets_.all().data()) * kSquareParts, stream);
  }
  at::Tensor numbers = at::empty({size}, parts_.options());
  RankNumbers mine{rank_, size_, size_ / step.targets};
  mine.stop = step.stop ? 1 : 0;
  mine.written = step.written ? 1 : 0;
  mine.counted = step.counted;
  kernels_->collect(mine, parts, parts_.numel(), loss_.data_ptr<double>(),
                    numbers.data_ptr<double>(), stream);
  check_launch(numbers);
  return numbers;
}

// One small all-reduce for all that the ranks tell each other.
at::Tensor ShardedAdamW::share(const at::Tensor& numbers) {
  if (size_ == 1) return numbers;
  const PhaseClock::Scope scope(clock_, "all-reduce", &PhaseSeconds::communication);
  std::vector<at::Tensor> list = {numbers.is_cpu() ? numbers.to(at::kFloat) : numbers};
  group_->backend->allreduce(list, c10d::AllreduceOptions())->wait();
  return list[0].to(at::kDouble);
}

void ShardedAdamW::begin_step(const Step& step, const Accept& accept) {
  wait_for_parameters();
  reduce();
  const at::Tensor numbers = share(collect(step));
  Numbers result{numbers, nullptr};
  if (numbers.is_cuda()) {
    const auto pinned = at::TensorOptions().dtype(at::kDouble).pinned_memory(true);
    result.on_host = at::empty({numbers.numel()}, pinned);
    result.on_host.copy_(numbers, /*non_blocking=*/true);
    result.arrived = clock_.record_event();
  }
  // Whether it is finite, a GPU finds out itself.
  bool accepted = true;
  AdamStep update{};
  if (kernels_ == nullptr || accept) {
    const StepResult known = result.read();
    accepted = known.finite() && (!accept || accept(known));
    if (accepted && kernels_ == nullptr) {
      update = adam_step(rule_, step.lr, host_updates_++, known.gradient_norm, known.counted);
    }
  }
  results_.push_back(std::move(result));
  if (accepted) {
    if (kernels_ != nullptr) {
      kernels_->decide(rule_, step.lr, size_, numbers.const_data_ptr<double>(), state(),
                       stream_of(numbers));
    }
    const PhaseClock::Scope scope(clock_, "AdamW", &PhaseSeconds::optimizer);
    const auto& all = buckets_.all();  // the next forward pass needs the last of them first
    for (auto bucket = all.rbegin(); bucket != all.rend(); ++bucket) {
      kernels_ == nullptr ? update_on_host(*bucket, update) : update_on_device(*bucket);
      send_out(*bucket);
    }
  }
  // AdamW leaves zeros behind; the other ranks' pieces hold what was sent.
  if (!accepted || size_ > 1) model_.gradients.zero_();
}

ShardedAdamW::StepResult ShardedAdamW::finish_step() {
  ST_CHECK(!results_.empty());
  const StepResult result = results_.front().read();
  results_.pop_front();
  return result;
}

UpdateState* ShardedAdamW::state() const {
  return reinterpret_cast<UpdateState*>(state_.data_ptr());
}

// Matrices decay, the norm weights behind them do not.
int64_t ShardedAdamW::decaying(const GradientBucket& bucket) const {
  return std::clamp<int64_t>(model_.layout.decay_size - bucket.piece_begin(rank_), 0, bucket.piece);
}

void ShardedAdamW::update_on_device(const GradientBucket& bucket) {
  const at::Tensor copy = model_.copies.defined() ? piece(model_.copies, bucket) : at::Tensor();
  const UpdateBuffers buffers{parameters_of(bucket).data_ptr<float>(),
                              piece(model_.gradients, bucket).data_ptr<float>(),
                              own(first_, bucket).data_ptr<float>(),
                              own(second_, bucket).data_ptr<float>(),
                              copy.defined() ? static_cast<uint16_t*>(copy.data_ptr()) : nullptr,
                              bucket.piece,
                              decaying(bucket)};
  kernels_->adamw(state(), buffers, stream_of(first_));
  check_launch(first_);
}

void ShardedAdamW::update_on_host(const GradientBucket& bucket, AdamStep step) {
  const at::Tensor mine = parameters_of(bucket);
  auto* parameters = mine.data_ptr<float>();
  auto* gradients = piece(model_.gradients, bucket).data_ptr<float>();
  auto* first = own(first_, bucket).data_ptr<float>();
  auto* second = own(second_, bucket).data_ptr<float>();
  const auto range = [&](int64_t from, int64_t to, double decay) {
    step.weight_decay = static_cast<float>(decay);
    for_pieces(*model_.team, to - from, [&](int64_t, int64_t piece_begin, int64_t piece_end) {
      const int64_t at = from + piece_begin;
      elementwise().adamw(parameters + at, gradients + at, first + at, second + at,
                          piece_end - piece_begin, step);
    });
  };
  range(0, decaying(bucket), rule_.weight_decay);
  range(decaying(bucket), bucket.piece, 0);
  copy_again(bucket);
}

void ShardedAdamW::copy_again(const GradientBucket& bucket) {
  if (model_.copies.defined()) piece(model_.copies, bucket).copy_(parameters_of(bucket));
}

bool ShardedAdamW::StepResult::finite() const {
  return std::isfinite(gradient_norm) &&
         std::all_of(losses.begin(), losses.end(), [](double loss) { return std::isfinite(loss); });
}

double ShardedAdamW::StepResult::mean_loss() const {
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
}

// ---- What lasts ---------------------------------------------------------------------------------

ShardedAdamW::Shards ShardedAdamW::copy_shards() const {
  const auto copy = [](const at::Tensor& tensor) {
    return tensor.to(at::kCPU, tensor.scalar_type(), /*non_blocking=*/false, /*copy=*/true);
  };
  Shards shards{at::empty(first_.sizes(), at::kFloat), copy(first_), copy(second_)};
  for (const GradientBucket& bucket : buckets_.all()) {
    own(shards.parameters, bucket).copy_(parameters_of(bucket));
  }
  return shards;
}

void ShardedAdamW::set_shards(const Shards& shards, int64_t updates) {
  first_.copy_(shards.first);
  second_.copy_(shards.second);
  host_updates_ = updates;
  if (kernels_ != nullptr) {
    UpdateState none{};
    none.updates = updates;
    state_.copy_(at::from_blob(&none, {sizeof(none)}, at::kByte));
  }
  for (const GradientBucket& bucket : buckets_.all()) {
    parameters_of(bucket).copy_(own(shards.parameters, bucket));
    copy_again(bucket);
    send_out(bucket);
  }
  wait_for_parameters();
}

}  // namespace smalltalk
