#include "smalltalk/lm/train/roofline.hpp"

#include <algorithm>
#include <cmath>

#include "lm/model/parameter_layout.hpp"
#include "lm/torch/block_bytes.hpp"
#include "lm/torch/segments_at_once.hpp"
#include "smalltalk/core/experiment/flops.hpp"

namespace smalltalk {
namespace {

constexpr double kProductShare = 0.72, kAttentionShare = 0.45, kBandwidthShare = 0.85;
constexpr double kLinkBytesPerSecond = 300e9;

// What merging experts adds to a layer's products. Each merge of a block of segments reads the
// matrices of all experts; batched products read or write the merged ones once a pass.
struct MergingTime {
  double flops = 0, seconds = 0;
};
MergingTime merging(const ModelConfig& model, int64_t rows, int64_t length, double passes,
                    double flops_per_second, double bytes_per_second) {
  const double segments =
      static_cast<double>(rows * ((length + model.segment_tokens - 1) / model.segment_tokens));
  const double blocks = std::ceil(segments / static_cast<double>(segments_at_once(model)));
  const auto experts = static_cast<double>(model.merged_experts);
  const double numbers =
      static_cast<double>((gate_up_width(model) + model.intermediate_size) * model.hidden_size);
  const double flops = 2 * segments * experts * numbers;  // of each product
  const double all = blocks * experts * numbers, merged = segments * numbers;
  const auto seconds = [&](double bytes) {
    return std::max(flops / flops_per_second, bytes / bytes_per_second);
  };
  // Forward, once more where all is computed again, and once for the inputs' gradients; then the
  // experts' gradients, which are read and written in float32, and the weights'.
  const double merges = passes - 1;
  return {(merges + 2) * flops, merges * seconds(2 * (all + merged)) +
                                    seconds(2 * merged + 2 * 4 * all) +
                                    seconds(2 * (all + merged))};
}

// Of a layer's kernels between the products, for so many tokens.
struct LayerBytes {
  double forward = 0, backward = 0;
};
LayerBytes layer_bytes(const ModelConfig& model, int64_t tokens) {
  const NumberType type = NumberType::bfloat16;
  const NormShape norm{type, 1, tokens, model.hidden_size, 0};
  const RotaryShape rotary{type, tokens, 0, model.num_heads, model.num_kv_heads, model.head_dim()};
  const ActivationShape activation{type, tokens, model.intermediate_size,
                                   model.feed_forward == FeedForward::swiglu};
  return {static_cast<double>(2 * add_norm_bytes(norm, true) + rotate_bytes(rotary) +
                              activate_bytes(activation)),
          static_cast<double>(2 * norm_backward_bytes(norm) + rotate_backward_bytes(rotary) +
                              activate_backward_bytes(activation))};
}

}  // namespace

const std::vector<Accelerator>& accelerators() {
  static const std::vector<Accelerator> all = {{"A100", 312e12, 2.04e12},
                                               {"H100", 989e12, 3.35e12},
                                               {"H200", 989e12, 4.8e12},
                                               {"B200", 2250e12, 8e12}};
  return all;
}

StepTime predicted_step(const ModelConfig& given, const TrainConfig& train, int64_t seq_length,
                        int group_size, const Accelerator& accelerator) {
  const ModelConfig model = given.resolved();
  const int64_t slices = num_slices(model, train, group_size);
  const ParameterLayout layout = parameter_layout(model, {0, slices});
  const int64_t rows = std::max<int64_t>(1, train.batch_size / group_size);
  const int64_t num_tokens = rows * seq_length;
  const auto tokens = static_cast<double>(num_tokens);
  const auto layers = static_cast<double>(model.num_layers);
  const auto hidden = static_cast<double>(model.hidden_size);
  const auto vocab = static_cast<double>(model.vocab_size);
  const double heads = static_cast<double>(model.num_heads * model.head_dim());
  const double width = static_cast<double>(qkv_width(model)) + heads +
                       static_cast<double>(gate_up_width(model) + model.intermediate_size);
  const double products = accelerator.peak_flops * kProductShare;
  const double bandwidth = accelerator.bytes_per_second * kBandwidthShare;
  const bool selective = train.recompute == Recompute::selective;
  const double passes = train.recompute == Recompute::full ? 4 : 3;  // a backward pass is two

  StepTime time;
  const double block_flops = layers * tokens * passes * 2 * width * hidden;
  const double loss_flops = tokens * 6 * hidden * vocab;
  time.product_flops = block_flops + loss_flops;
  time.products = block_flops / products;
  if (model.merges_experts()) {
    const MergingTime of_layer =
        merging(sliced(model, {0, slices}), slices * rows, seq_length, passes, products, bandwidth);
    const auto merging_layers = static_cast<double>(model.num_merging_layers());
    time.product_flops += merging_layers * of_layer.flops;
    time.products += merging_layers * of_layer.seconds;
  }
  // Causal, two products over half of the positions; backward two and a half times that.
  const double attention = tokens * 2 * static_cast<double>(seq_length) * heads;
  time.attention =
      layers * attention * (passes - 3 + 3.5) / (accelerator.peak_flops * kAttentionShare);
  const LayerBytes bytes = layer_bytes(model, num_tokens);
  time.elementwise =
      layers * (bytes.forward * (passes - 2 + (selective ? 1 : 0)) + bytes.backward) / bandwidth;
  // Logits are written by a product, read twice and turned into gradients, which two products read.
  const SoftmaxShape softmax{NumberType::bfloat16, num_tokens, model.vocab_size};
  time.loss_products = loss_flops / products;
  time.loss = time.loss_products +
              (static_cast<double>(softmax_bytes(softmax, true)) + tokens * vocab * (4 + 2 * 2)) /
                  bandwidth;
  // The norm, and AdamW, which reads and writes four numbers and writes the bfloat16 copy, of the
  // own share; in a group zeros for all gradients.
  const auto parameters = static_cast<double>(layout.total),
             own = static_cast<double>(layout.sliced);
  const double updated = own + (parameters - own) / group_size;
  time.optimizer =
      (updated * (4.0 + 8 * 4 + 2) + (group_size > 1 ? 4 * parameters : 0)) / bandwidth;
  if (group_size > 1) {
    const double layer = static_cast<double>(layout.decay_size - layout.blocks) / layers;
    time.communication = 2 * (vocab * hidden + layer) / kLinkBytesPerSecond;
  }
  if (slices > 1) {
    // Inputs and outputs of a layer's experts, their gradients and the inputs again, of the other
    // ranks' tokens, which nothing hides; both once more where a pass is done again.
    const double transfers = layers * (5 + 2 * (passes - 3));
    time.communication +=
        transfers * 2 * static_cast<double>(slices - 1) * tokens * hidden / kLinkBytesPerSecond;
  }
  time.mfu = train_flops(model, rows, seq_length) / time.total() / accelerator.peak_flops;
  return time;
}

}  // namespace smalltalk
