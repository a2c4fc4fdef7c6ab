#include "smalltalk/lm/torch/decoder.hpp"

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>

#include "lm/model/check_tokens.hpp"
#include "lm/model/transformer_impl.hpp"
#include "lm/torch/torch_ops.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

struct Decoder::Impl {
  struct Layer {
    at::Tensor qkv, output, gate_up, down;         // matrices, in the type of the products
    at::Tensor attention_norm, feed_forward_norm;  // float32
    at::Tensor keys, values;                       // [rows, max_tokens, kv heads, head_dim]
  };

  Impl(const Transformer::Impl& model, int64_t rows, int64_t max_tokens);

  // Feeds `ids` [B, n] to the rows from `first_row` on, of which row b has `past[b]` tokens; -> the
  // logits after the last one [B, V], float32 in host memory. One of B and n is 1.
  std::vector<float> feed(const at::Tensor& ids, int64_t first_row, std::span<const int64_t> past);

  ModelConfig config;
  at::Device device;
  at::ScalarType type;  // of the products
  int64_t max_tokens;
  at::Tensor embedding, head, final_norm;
  std::vector<Layer> layers;
  RotaryAngles angles;         // of all positions
  std::vector<int64_t> sizes;  // [rows]
};

Decoder::Impl::Impl(const Transformer::Impl& model, int64_t rows, int64_t max_size)
    : config(model.config),
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
    layers.push_back({matrix(at.qkv, qkv_width(config), hidden),
                      matrix(at.output, hidden, config.num_heads * config.head_dim()),
                      matrix(at.gate_up, gate_up_width(config), hidden),
                      matrix(at.down, hidden, width), norm(at.attention_norm),
                      norm(at.feed_forward_norm), cache(), cache()});
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
    const at::Tensor up =
        at::linear(rms_norm(x, layer.feed_forward_norm, config.rms_norm_eps, type), layer.gate_up);
    x = x + at::linear(activate(config, up), layer.down).to(at::kFloat);
  }
  const at::Tensor last = rms_norm(x.select(1, count - 1), final_norm, config.rms_norm_eps, type);
  const at::Tensor logits = at::linear(last, head).to(at::kFloat).to(at::kCPU).contiguous();
  const float* values = logits.const_data_ptr<float>();
  return {values, values + logits.numel()};
}

Decoder::Decoder(const Transformer& model, int64_t rows, int64_t max_tokens) {
  ST_CHECK(rows >= 1 && max_tokens >= 1);
  if (model.config().merges_experts()) throw Error("models that merge experts cannot write yet");
  const at::NoGradGuard no_grad;
  impl_ = std::make_unique<Impl>(model.impl(), rows, max_tokens);
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
  const int64_t none = 0;
  return impl_->feed(at::from_blob(const_cast<int64_t*>(tokens.data()), {1, count}, at::kLong), row,
                     {&none, 1});
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

}  // namespace smalltalk
