#include "smalltalk/lm/transformer.hpp"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cstring>

#include "cpu_engine.hpp"
#include "smalltalk/core/error.hpp"
#include "torch_engine.hpp"
#include "transformer_impl.hpp"

namespace smalltalk {

Transformer::Impl::Impl(const ModelConfig& model, const DeviceConfig& where)
    : config(model.resolved()), device(where), layout(parameter_layout(config)) {
  if (device.device != "cpu" && device.device != "cuda") {
    throw Error("device.device must be cpu or cuda, is '" + device.device + "'");
  }
  if (device.device == "cpu" && device.precision != "float32") {
    throw Error("device.precision '" + device.precision +
                "' needs device.device = \"cuda\"; the CPU computes in float32");
  }
  const bool cuda = device.device == "cuda";
  parameters = at::zeros({layout.total}, at::device(cuda ? at::kCUDA : at::kCPU).dtype(at::kFloat));
  if (cuda) {
    engine = std::make_unique<TorchEngine>(config, layout, parameters, device.precision);
  } else {
    engine = std::make_unique<CpuEngine>(config, layout, static_cast<int>(device.threads));
  }
  engine->rebind(parameters.data_ptr<float>(), nullptr);
}

void Transformer::Impl::allocate_gradients() {
  if (!gradients.defined() || gradients.numel() != parameters.numel()) {
    gradients = at::zeros_like(parameters);
  }
  engine->rebind(parameters.data_ptr<float>(), gradients.data_ptr<float>());
}

void Transformer::Impl::pad_to(int64_t multiple) {
  const int64_t padded = (layout.total + multiple - 1) / multiple * multiple;
  if (padded != parameters.numel()) {
    at::Tensor larger = at::zeros({padded}, parameters.options());
    larger.narrow(0, 0, layout.total).copy_(parameters.narrow(0, 0, layout.total));
    parameters = larger;
  }
  allocate_gradients();
}

void Transformer::Impl::set_parameter(const ParameterSpec& spec, std::span<const float> values) {
  ST_CHECK(static_cast<int64_t>(values.size()) == spec.size);
  const at::Tensor source = at::from_blob(const_cast<float*>(values.data()), {spec.size},
                                          at::TensorOptions().dtype(at::kFloat));
  parameters.narrow(0, spec.offset, spec.size).copy_(source);
}

at::Tensor Transformer::Impl::host_parameters() const { return parameters.to(at::kCPU); }

void check_tokens(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                  int64_t vocab_size) {
  if (row_tokens < 1 || rows < 0 || static_cast<int64_t>(tokens.size()) != rows * row_tokens) {
    throw Error("expected " + std::to_string(rows) + " rows of " + std::to_string(row_tokens) +
                " tokens, got " + std::to_string(tokens.size()) + " tokens");
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= 0 && tokens[i] < vocab_size) continue;
    throw Error("token " + std::to_string(tokens[i]) + " in row " +
                std::to_string(static_cast<int64_t>(i) / row_tokens) +
                " is outside the vocabulary of " + std::to_string(vocab_size) +
                ": were these tokens made with another tokenizer?");
  }
}

Transformer::Transformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Transformer::~Transformer() = default;
Transformer::Transformer(Transformer&&) noexcept = default;
Transformer& Transformer::operator=(Transformer&&) noexcept = default;

Transformer::Transformer(const ModelConfig& config, const DeviceConfig& device, uint64_t seed)
    : impl_(std::make_unique<Impl>(config, device)) {
  std::vector<float> values;
  for (const ParameterSpec& spec : impl_->layout.specs) {
    values.resize(spec.size);
    init_parameter(spec, seed, values.data());
    impl_->set_parameter(spec, values);
  }
}

const ModelConfig& Transformer::config() const { return impl_->config; }
int64_t Transformer::num_parameters() const { return impl_->layout.total; }

void Transformer::log_likelihoods(std::span<const int64_t> tokens, int64_t count,
                                  int64_t row_tokens, std::span<const int64_t> prefixes,
                                  int64_t block_rows, std::span<double> out) const {
  check_tokens(tokens, count, row_tokens, impl_->config.vocab_size);
  if (row_tokens < 2) throw Error("a row needs at least 2 tokens to be scored");
  if (prefixes.empty() || prefixes.front() < 1 || prefixes.back() > row_tokens ||
      !std::is_sorted(prefixes.begin(), prefixes.end())) {
    throw Error("prefixes must ascend within 1 .. " + std::to_string(row_tokens));
  }
  ST_CHECK(block_rows >= 1 && out.size() == static_cast<size_t>(count) * prefixes.size());

  const int64_t length = row_tokens - 1;
  std::vector<int64_t> filled;
  std::vector<float> log_probs(block_rows * length);
  for (int64_t first = 0; first < count; first += block_rows) {
    const int64_t rows = std::min(block_rows, count - first);
    std::span<const int64_t> block = tokens.subspan(first * row_tokens, rows * row_tokens);
    if (rows < block_rows) {
      // Products of another shape may round otherwise: fill the last block up.
      filled.assign(block_rows * row_tokens, 0);
      std::copy(block.begin(), block.end(), filled.begin());
      block = filled;
    }
    impl_->engine->target_log_probs(block, block_rows, row_tokens, log_probs);
    for (int64_t row = 0; row < rows; ++row) {
      const float* values = log_probs.data() + row * length;
      double sum = 0;
      int64_t target = 0;
      for (size_t j = 0; j < prefixes.size(); ++j) {
        for (; target < prefixes[j] - 1; ++target) sum += values[target];
        out[static_cast<size_t>(first + row) * prefixes.size() + j] = sum;
      }
    }
  }
}

std::vector<float> Transformer::weights() const {
  const at::Tensor host = impl_->host_parameters();
  const float* base = host.const_data_ptr<float>();
  return {base, base + impl_->layout.total};
}

void Transformer::set_weights(std::span<const float> values) {
  ST_CHECK(static_cast<int64_t>(values.size()) == impl_->layout.total);
  const at::Tensor host =
      at::from_blob(const_cast<float*>(values.data()), {impl_->layout.total}, at::kFloat);
  impl_->parameters.narrow(0, 0, impl_->layout.total).copy_(host);
}

std::map<std::string, std::span<const float>> Transformer::parameters() const {
  if (impl_->device.device != "cpu") throw Error("parameters() is for models on the CPU");
  std::map<std::string, std::span<const float>> result;
  const float* base = impl_->parameters.const_data_ptr<float>();
  for (const ParameterSpec& spec : impl_->layout.specs) {
    result.emplace(spec.name, std::span(base + spec.offset, spec.size));
  }
  return result;
}

std::vector<float> Transformer::logits(std::span<const int64_t> tokens, int64_t count,
                                       int64_t row_tokens) const {
  check_tokens(tokens, count, row_tokens, impl_->config.vocab_size);
  std::vector<float> result(count * row_tokens * impl_->config.vocab_size);
  impl_->engine->logits(tokens, count, row_tokens, result);
  return result;
}

}  // namespace smalltalk
