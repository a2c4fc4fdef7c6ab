#include "smalltalk/lm/torch/decoder.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mv.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "lm/model/check_tokens.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/torch_ops.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

struct Decoder::Impl {
  // E experts of a layer and what they are merged to. N: numbers of an expert.
  struct Experts {
    at::Tensor matrices;  // [E, N], in the type of the products: gate and up, then down
    at::Tensor merged;    // [rows, N]
    at::Tensor router;    // [E, H], float32
    at::Tensor weights;   // [rows, E], float32
    at::Tensor sums;      // [rows, H], float32: of a row's inputs since its segment began
  };
  struct Layer {
    at::Tensor qkv, output, gate_up, down;         // matrices, in the type of the products
    at::Tensor attention_norm, feed_forward_norm;  // float32
    at::Tensor keys, values;                       // [rows, max_tokens, kv heads, head_dim]
    std::optional<Experts> experts;  // if it merges any; gate_up and down are then views of merged
  };

  Impl(const Transformer::Impl& model, int64_t rows, int64_t max_tokens, MergeBy merging);

  // Feeds `ids` [B, n] to the rows from `first_row` on, of which row b has `past[b]` tokens; -> the
  // logits after the last one [B, V], float32 in host memory. One of B and n is 1.
  std::vector<float> feed(const at::Tensor& ids, int64_t first_row, std::span<const int64_t> past);
  // Tokens of a row that share merged matrices: feed() takes no more of one row at once.
  int64_t segment_size() const;
  // Merges the experts for those rows whose weights are chosen anew at these tokens, of which x
  // [B, n, H] are the layer's inputs.
  void merge(Experts& experts, const at::Tensor& x, int64_t first_row,
             std::span<const int64_t> past) const;
  // The weights [E] for a row that was fed `past` tokens; x [n, H].
  at::Tensor choose(const Experts& experts, const at::Tensor& x, int64_t row, int64_t past) const;

  ModelConfig config;
  MergeBy merging;
  at::Device device;
  at::ScalarType type;  // of the products
  int64_t max_tokens;
  at::Tensor embedding, head, final_norm;
  std::vector<Layer> layers;
  RotaryAngles angles;         // of all positions
  std::vector<int64_t> sizes;  // [rows]
};

namespace {

// x [B, n, in] by one matrix [out, in], or by one for each row [B, out, in].
at::Tensor product(const at::Tensor& x, const at::Tensor& matrix) {
  return matrix.dim() == 2 ? at::linear(x, matrix) : at::bmm(x, matrix.transpose(1, 2));
}

}  // namespace

Decoder::Impl::Impl(const Transformer::Impl& model, int64_t rows, int64_t max_size, MergeBy how)
    : config(model.config),
      merging(how),
      device(model.parameters.device()),
      type(model.device.precision == "bf16-mixed" ? at::kBFloat16 : at::kFloat),
      max_tokens(max_size),
      angles(rotary_angles(config, max_size, device)),
      sizes(static_cast<size_t>(rows), 0) {
  const at::Tensor products = type == at::kFloat ? model.parameters : model.copies;
  const auto matrix = [&](int64_t offset, int64_t out, int64_t in) {
    return products.narrow(0, offset, out * in).view({out, in});
  };
  const auto norm = [&](int64_t offset) {
    return model.parameters.narrow(0, offset, config.hidden_size);
  };
  const int64_t hidden = config.hidden_size, width = config.intermediate_size;
  embedding = matrix(model.layout.embedding, config.vocab_size, hidden);
  head = matrix(model.layout.head, config.vocab_size, hidden);
  final_norm = norm(model.layout.final_norm);
  for (const LayerOffsets& at : model.layout.layers) {
    const auto cache = [&] {
      return at::zeros({rows, max_tokens, config.num_kv_heads, config.head_dim()},
                       products.options());
    };
    Layer layer = {matrix(at.qkv, qkv_width(config), hidden),
                   matrix(at.output, hidden, config.num_heads * config.head_dim()),
                   matrix(at.gate_up, gate_up_width(config), hidden),
                   matrix(at.down, hidden, width),
                   norm(at.attention_norm),
                   norm(at.feed_forward_norm),
                   cache(),
                   cache(),
                   std::nullopt};
    if (at.merges) {
      const int64_t count = config.merged_experts, size = model.layout.expert_stride;
      const auto zeros = [&](int64_t columns) {
        return at::zeros({rows, columns}, model.parameters.options());
      };
      const at::Tensor router = model.parameters.narrow(0, at.router, count * hidden);
      const at::Tensor merged = at::zeros({rows, size}, products.options());
      const int64_t gate_up = gate_up_width(config) * hidden;
      layer.experts = {matrix(at.gate_up, count, size), merged, router.view({count, hidden}),
                       zeros(count), zeros(hidden)};
      layer.gate_up = merged.narrow(1, 0, gate_up).view({rows, gate_up_width(config), hidden});
      layer.down = merged.narrow(1, gate_up, hidden * width).view({rows, hidden, width});
    }
    layers.push_back(std::move(layer));
  }
}

int64_t Decoder::Impl::segment_size() const {
  const bool cut = config.merges_experts() && merging == MergeBy::segments;
  return cut ? config.segment_tokens : max_tokens;
}

at::Tensor Decoder::Impl::choose(const Experts& experts, const at::Tensor& x, int64_t row,
                                 int64_t past) const {
  if (merging == MergeBy::segments && past == 0) {
    const auto count = static_cast<double>(config.merged_experts);
    return at::full({config.merged_experts}, 1 / count, experts.weights.options());
  }
  const at::Tensor mean = merging == MergeBy::prompt
                              ? x.to(at::kFloat).mean(0)
                              : experts.sums[row] / static_cast<double>(config.segment_tokens);
  return at::softmax(at::mv(experts.router, mean), 0);
}

void Decoder::Impl::merge(Experts& experts, const at::Tensor& x, int64_t first_row,
                          std::span<const int64_t> past) const {
  for (int64_t i = 0; i < std::ssize(past); ++i) {
    const int64_t row = first_row + i;
    const bool begun = sizes[static_cast<size_t>(row)] > 0;
    const bool decided =
        config.routing == SegmentRouting::prefix && past[i] > config.segment_tokens;
    if (!begun || decided || past[i] % segment_size() != 0) continue;
    const at::Tensor weights = choose(experts, x[i], row, past[i]);
    experts.weights[row].copy_(weights);
    experts.merged[row].copy_(at::mv(experts.matrices.t(), weights.to(type)));
    experts.sums[row].zero_();
  }
  if (merging == MergeBy::segments) {
    experts.sums.narrow(0, first_row, x.size(0)).add_(x.sum(1, false, at::kFloat));
  }
}

std::vector<float> Decoder::Impl::feed(const at::Tensor& ids, int64_t first_row,
                                       std::span<const int64_t> past) {
  const int64_t rows = ids.size(0), count = ids.size(1);
  const int64_t heads = config.num_heads, kv = config.num_kv_heads, dim = config.head_dim();
  const int64_t longest = *std::max_element(past.begin(), past.end()) + count;
  const auto integers = at::TensorOptions().dtype(at::kLong).device(device);
  const at::Tensor begins =
      at::from_blob(const_cast<int64_t*>(past.data()), {rows, 1}, at::kLong).to(device);
  const at::Tensor positions = begins + at::arange(count, integers);  // [B, n]
  const at::Tensor row_of = at::arange(first_row, first_row + rows, integers).unsqueeze(1);
  // Which of the cached tokens a token sees: [B, 1, n, longest].
  const at::Tensor visible = (at::arange(longest, integers) <= positions.unsqueeze(2)).unsqueeze(1);
  const auto of_positions = [&](const at::Tensor& table) {
    return table.index_select(0, positions.flatten()).view({rows, count, 1, dim});
  };
  const RotaryAngles turn = {of_positions(angles.cosine), of_positions(angles.sine)};
  const auto cached = [&](const at::Tensor& cache) {
    return cache.narrow(0, first_row, rows).narrow(1, 0, longest).transpose(1, 2);
  };
  const auto of_rows = [&](const at::Tensor& matrix) {
    return matrix.dim() == 2 ? matrix : matrix.narrow(0, first_row, rows);
  };

  at::Tensor x = at::embedding(embedding, ids.to(device)).to(at::kFloat);  // [B, n, H]
  for (Layer& layer : layers) {
    const at::Tensor normed = rms_norm(x, layer.attention_norm, config.rms_norm_eps, type);
    const at::Tensor qkv = at::linear(normed, layer.qkv).view({rows, count, heads + 2 * kv, dim});
    const at::Tensor query = rotate(qkv.narrow(2, 0, heads), turn).transpose(1, 2);
    layer.keys.index_put_({row_of, positions}, rotate(qkv.narrow(2, heads, kv), turn));
    layer.values.index_put_({row_of, positions}, qkv.narrow(2, heads + kv, kv));
    const at::Tensor attention = at::scaled_dot_product_attention(
        query, cached(layer.keys), cached(layer.values), visible, 0.0, false, std::nullopt,
        /*enable_gqa=*/kv != heads);
    x = x + at::linear(attention.transpose(1, 2).reshape({rows, count, heads * dim}), layer.output)
                .to(at::kFloat);
    const at::Tensor middle = rms_norm(x, layer.feed_forward_norm, config.rms_norm_eps, type);
    if (layer.experts) merge(*layer.experts, middle, first_row, past);
    const at::Tensor up = product(middle, of_rows(layer.gate_up));
    x = x + product(activate(config, up), of_rows(layer.down)).to(at::kFloat);
  }
  const at::Tensor last = rms_norm(x.select(1, count - 1), final_norm, config.rms_norm_eps, type);
  const at::Tensor logits = at::linear(last, head).to(at::kFloat).to(at::kCPU).contiguous();
  const float* values = logits.const_data_ptr<float>();
  return {values, values + logits.numel()};
}

Decoder::Decoder(const Transformer& model, int64_t rows, int64_t max_tokens, MergeBy merging) {
  ST_CHECK(rows >= 1 && max_tokens >= 1);
  const at::NoGradGuard no_grad;
  impl_ = std::make_unique<Impl>(model.impl(), rows, max_tokens, merging);
}
Decoder::~Decoder() = default;

std::vector<float> Decoder::begin(int64_t row, std::span<const int64_t> tokens) {
  ST_CHECK(row >= 0 && row < std::ssize(impl_->sizes) && !tokens.empty());
  const auto count = static_cast<int64_t>(tokens.size());
  check_tokens(tokens, 1, count, impl_->config.vocab_size);
  if (count > impl_->max_tokens) {
    throw Error(fmt::format("{} tokens do not fit into a cache of {}", count, impl_->max_tokens));
  }
  const at::NoGradGuard no_grad;
  impl_->sizes[static_cast<size_t>(row)] = count;
  std::vector<float> logits;
  for (int64_t past = 0; past < count; past += impl_->segment_size()) {
    const int64_t size = std::min(impl_->segment_size(), count - past);
    int64_t* ids = const_cast<int64_t*>(tokens.data()) + past;
    logits = impl_->feed(at::from_blob(ids, {1, size}, at::kLong), row, {&past, 1});
  }
  return logits;
}

std::vector<float> Decoder::step(std::span<const int64_t> tokens) {
  const auto rows = std::ssize(impl_->sizes);
  check_tokens(tokens, rows, 1, impl_->config.vocab_size);
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> past = impl_->sizes;
  for (int64_t& size : impl_->sizes) {
    if (size == 0) continue;
    if (size == impl_->max_tokens) throw Error(fmt::format("a cache of {} tokens is full", size));
    ++size;
  }
  return impl_->feed(at::from_blob(const_cast<int64_t*>(tokens.data()), {rows, 1}, at::kLong), 0,
                     past);
}

void Decoder::end(int64_t row) { impl_->sizes.at(static_cast<size_t>(row)) = 0; }

int64_t Decoder::size(int64_t row) const { return impl_->sizes.at(static_cast<size_t>(row)); }

std::vector<std::vector<float>> Decoder::expert_weights(int64_t row) const {
  std::vector<std::vector<float>> weights;
  for (const Impl::Layer& layer : impl_->layers) {
    if (!layer.experts) continue;
    const at::Tensor of_row = layer.experts->weights[row].to(at::kCPU);
    const float* values = of_row.const_data_ptr<float>();
    weights.emplace_back(values, values + of_row.numel());
  }
  return weights;
}

}  // namespace smalltalk
