#include "smalltalk/lm/train/memory.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "lm/cpu/cpu_engine.hpp"
#include "lm/cpu/cpu_loss.hpp"
#include "lm/cpu/cpu_pass.hpp"
#include "lm/torch/torch_experts.hpp"
#include "lm/torch/torch_loss.hpp"
#include "lm/train/gradient_buckets.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {
namespace {

constexpr double kFloat = sizeof(float);
constexpr double kUsable = 0.9;  // of a GPU

void add_cpu(const ModelConfig& model, const ParameterLayout& layout, int64_t threads, int64_t rows,
             int64_t length, Recompute recompute, MemoryEstimate& memory) {
  // Every thread but the first has gradients of its own for the blocks.
  memory.gradients += kFloat * static_cast<double>((threads - 1) * (layout.total - layout.blocks));
  const int64_t pass_rows = CpuEngine::pass_rows(rows, length, threads);
  memory.activations =
      kFloat * static_cast<double>(threads * CpuPass::memory_floats(model, pass_rows, length,
                                                                    kept_with(recompute)));
  memory.loss = kFloat * static_cast<double>(FusedLoss::memory_floats(
                             model.hidden_size, model.vocab_size, static_cast<int>(threads)));
}

// The tensors of TorchEngine, per token. Where experts are merged within documents, as if each row
// were one: short ones take more.
void add_torch(const ModelConfig& model, int64_t slices, bool bf16, int64_t rows, int64_t length,
               Recompute recompute, MemoryEstimate& memory) {
  const int64_t tokens = rows * length;
  const double product = bf16 ? 2 : kFloat;  // bytes of a number in matrix products
  const auto size = [&](int64_t width) { return product * static_cast<double>(width); };
  const double stream = kFloat * static_cast<double>(model.hidden_size);
  const double hidden = size(model.hidden_size), heads = size(model.num_heads * model.head_dim());
  const double qkv = size(qkv_width(model)), up = size(gate_up_width(model));
  const double width = size(model.intermediate_size);
  // What a norm has normalised, and its reciprocal root; attention's output and its log-sums, and,
  // where queries outnumber them, keys and values for each; what goes through the activation.
  const double norm = stream + kFloat;
  const double repeated = model.num_kv_heads == model.num_heads ? 0 : 2 * heads;
  const double attention = qkv + heads + repeated + kFloat * static_cast<double>(model.num_heads);
  const double outputs = 2 * hidden + width;  // of norms and activation
  const double layer = 2 * norm + attention + up + outputs;
  double kept = layer;
  if (recompute == Recompute::selective) kept = layer - outputs;
  if (recompute == Recompute::full) kept = stream;
  // On the way back: the stream's gradient, also rounded, and what the widest of a layer's halves
  // has at a time; and what is computed again.
  const double of_stream = stream + (bf16 ? hidden : 0);
  // By the time of attention the feed-forward's own is free.
  const double turning = heads + 3 * heads + repeated + qkv - up - width;
  double again = 0;
  if (recompute == Recompute::selective) again = width;
  if (recompute == Recompute::full) again = layer - stream;
  // Merged matrices exist for some segments at a time, when what the first product gave is free.
  // Slices of experts take the tokens of all ranks: inputs and gradients of outputs are gathered,
  // and gradients of inputs, not yet summed, are as many.
  double merging = 0, routes = 0, table = 0, gathered = 0;
  if (model.merges_experts()) {
    const auto all = static_cast<double>(tokens);
    const ModelConfig computed = sliced(model, {0, slices});
    merging = MergedSegments::work_bytes(computed, slices * rows, length, product) / all;
    table = MergedSegments::table_bytes(model, rows, length);
    if (slices > 1) {
      table += MergedSegments::table_bytes(model, slices * rows, length);
      gathered = static_cast<double>(slices) * hidden;
    }
    const auto segments =
        static_cast<double>((length + model.segment_tokens - 1) / model.segment_tokens);
    routes =
        kFloat * segments / static_cast<double>(length) * static_cast<double>(model.merged_experts);
    const auto share =
        static_cast<double>(model.num_merging_layers()) / static_cast<double>(model.num_layers);
    const auto rank_routes = static_cast<double>(slices > 1 ? 1 + slices : 1);
    if (recompute != Recompute::full) kept += share * routes * rank_routes;
  }
  // Behind the second product, whose merged matrices are smaller; at the activation, whose output
  // is free by then; behind the first product.
  const double feed_forward = std::max({width + gathered + merging * width / up, up,
                                        (slices > 1 ? 2 * gathered : hidden) + merging - width});
  const double backward = of_stream + std::max(feed_forward, turning) + again;
  memory.loss = static_cast<double>(
      fused_cross_entropy_bytes(tokens, model.hidden_size, model.vocab_size, bf16));
  const double last_norm = norm + hidden;
  memory.activations =
      static_cast<double>(tokens) * (static_cast<double>(model.num_layers) * kept + last_norm) +
      std::max(0.0, static_cast<double>(tokens) * (backward - last_norm) - memory.loss);
  memory.activations += table;
  // Who sees whom, and the same as numbers.
  if (model.document_mask)
    memory.activations += (1 + product) * static_cast<double>(tokens * length);
}

}  // namespace

MemoryEstimate predicted_memory(const ModelConfig& given, const TrainConfig& train,
                                const DeviceConfig& device, int64_t seq_length, int group_size) {
  const ModelConfig model = given.resolved();
  const int64_t slices = num_slices(model, train, group_size);
  const ParameterLayout layout = parameter_layout(model, {0, slices});
  const GradientBuckets buckets(layout, group_size, bucket_floats(0, layout.total));
  const double flat = kFloat * static_cast<double>(buckets.padded());
  const double shard = kFloat * static_cast<double>(buckets.shard_size());
  const int64_t share = std::max<int64_t>(1, train.batch_size / group_size);
  const int64_t rows = train.micro_batch_size == 0 ? share : train.micro_batch_size;

  MemoryEstimate memory;
  memory.weights = memory.gradients = flat;
  memory.optimizer = 2 * shard;
  if (device.precision == "bf16-mixed") {
    // Copies, and in a group float32 weights of the own share and norms.
    if (group_size > 1) {
      memory.weights =
          shard + kFloat * static_cast<double>(buckets.padded() - buckets.norms_begin());
    }
    memory.weights += flat / 2;
  }
  const bool cuda = device.device == "cuda";
  if (cuda || slices > 1) {
    add_torch(model, slices, device.precision == "bf16-mixed", rows, seq_length, train.recompute,
              memory);
  } else {
    add_cpu(model, layout, device.threads, rows, seq_length, train.recompute, memory);
  }
  if (cuda) return memory;
  if (train.save_interval > 0) memory.checkpoint = 3 * shard;
  if (group_size > 1) {
    // MPI sums into a buffer of its own; the own piece cannot be the destination.
    int64_t largest = 0;
    for (const GradientBucket& bucket : buckets.all()) {
      if (bucket.shared()) largest = std::max(largest, bucket.piece);
    }
    memory.communication = kFloat * static_cast<double>(largest * (group_size + 1));
  }
  return memory;
}

TrainConfig fitted_to_device(const ModelConfig& model, const TrainConfig& train,
                             const DeviceConfig& device, int64_t seq_length, int group_size,
                             double device_bytes) {
  TrainConfig tried = train;
  const bool chosen = train.recompute != Recompute::automatic;
  if (device.device != "cuda") {
    if (!chosen) tried.recompute = Recompute::none;
    return tried;
  }
  const int64_t share = std::max<int64_t>(1, train.batch_size / group_size);
  const auto levels = chosen ? std::vector{train.recompute}
                             : std::vector{Recompute::none, Recompute::selective, Recompute::full};
  double needed = 0;
  // Whether it fits; with the largest micro batch, unless one is given.
  const auto fits = [&](Recompute level) {
    tried.recompute = level;
    for (int64_t count = 1; count <= share; ++count) {
      if (share % count != 0) continue;
      tried.micro_batch_size = train.micro_batch_size > 0 ? train.micro_batch_size : share / count;
      needed = predicted_memory(model, tried, device, seq_length, group_size).total();
      if (needed <= kUsable * device_bytes) return true;
    }
    return false;
  };
  // Rather compute again than work on a few tokens at a time.
  constexpr int64_t kEnoughTokens = 4096;
  for (const int64_t enough : {kEnoughTokens, int64_t{0}}) {
    for (const Recompute level : levels) {
      if (!fits(level)) continue;
      const int64_t rows = tried.micro_batch_size;
      if (rows == share || rows == train.micro_batch_size || rows * seq_length >= enough) {
        return tried;
      }
    }
  }
  throw Error(fmt::format(
      "micro batches of {} take {}, but of a device of {} only {} are to be counted on: save "
      "memory "
      "by {}{}a larger mixture.group_size",
      tried.micro_batch_size, human_bytes(needed), human_bytes(device_bytes),
      human_bytes(kUsable * device_bytes),
      train.micro_batch_size > 1 ? "a smaller expert.micro_batch_size (0: what fits), by " : "",
      levels.back() == Recompute::full ? "" : "expert.recompute = auto, or by "));
}

}  // namespace smalltalk
