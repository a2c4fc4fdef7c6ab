#include "smalltalk/lm/model/transformer.hpp"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "lm/model/check_tokens.hpp"
#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

namespace {

void require_device(const DeviceConfig& device) {
  if (device.device != "cpu" && device.device != "cuda") {
    throw Error("device.device must be cpu or cuda, is '" + device.device + "'");
  }
  if (device.device == "cpu" && device.precision != "float32") {
    throw Error("device.precision '" + device.precision +
                "' needs device.device = \"cuda\"; the CPU computes in float32");
  }
}

}  // namespace

Transformer::Impl::Impl(const ModelConfig& model, const DeviceConfig& where, at::Tensor given,
                        std::shared_ptr<ThreadTeam> threads, int64_t models)
    : config(model.resolved()),
      device(where),
      layout(parameter_layout(config)),
      num_models(models),
      parameters(std::move(given)),
      team(std::move(threads)) {
  require_device(device);
  if (!team) team = make_thread_team(device);
  if (!parameters.defined()) {
    const auto place = device.device == "cuda" ? at::kCUDA : at::kCPU;
    parameters = at::zeros({num_models * layout.total}, at::device(place).dtype(at::kFloat));
  }
  engine = make_engine(config, layout, device, parameters, *team, num_models);
  engine->rebind(parameters.data_ptr<float>(), nullptr);
}

void Transformer::Impl::allocate_gradients() {
  if (!gradients.defined() || gradients.numel() != parameters.numel()) {
    gradients = at::zeros_like(parameters);
  }
  engine->rebind(parameters.data_ptr<float>(), gradients.data_ptr<float>());
}

void Transformer::Impl::pad_to(int64_t padded) {
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

void Transformer::Impl::init(uint64_t seed) {
  std::vector<float> values;
  for (const ParameterSpec& spec : layout.specs) {
    values.resize(spec.size);
    init_parameter(spec, seed, values.data());
    set_parameter(spec, values);
  }
}

at::Tensor Transformer::Impl::host_parameters() const { return parameters.to(at::kCPU); }

Transformer::Transformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Transformer::~Transformer() = default;
Transformer::Transformer(Transformer&&) noexcept = default;
Transformer& Transformer::operator=(Transformer&&) noexcept = default;

Transformer::Transformer(const ModelConfig& config, const DeviceConfig& device, uint64_t seed)
    : impl_(std::make_unique<Impl>(config, device)) {
  impl_->init(seed);
}

const ModelConfig& Transformer::config() const { return impl_->config; }
int64_t Transformer::num_parameters() const { return impl_->layout.total; }

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
