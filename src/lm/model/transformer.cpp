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

Transformer::Impl::Impl(const ModelConfig& model, const DeviceConfig& where, int64_t models,
                        ExpertSlice slice)
    : config(model.resolved()),
      device(where),
      layout(parameter_layout(config, slice)),
      num_models(models) {
  require_device(device);
  team = make_thread_team(device);
  const auto place = device.device == "cuda" ? at::kCUDA : at::kCPU;
  parameters = at::zeros({num_models * layout.total}, at::device(place).dtype(at::kFloat));
  if (device.precision == "bf16-mixed") copies = at::zeros_like(parameters, at::kBFloat16);
  make_engine_here();
}

Transformer::Impl::Impl(const Impl& stack, int64_t model)
    : config(stack.config),
      device(stack.device),
      layout(stack.layout),
      num_models(1),
      team(stack.team) {
  const auto part = [&](const at::Tensor& all) {
    return all.defined() ? all.narrow(0, model * layout.total, layout.total) : all;
  };
  parameters = part(stack.parameters);
  copies = part(stack.copies);
  make_engine_here();
}

void Transformer::Impl::make_engine_here() {
  engine = make_engine(sliced(config, layout.slice), layout, device, parameters, *team, num_models);
  rebind();
}

void Transformer::Impl::rebind() {
  ModelBuffers buffers;
  if (parameters.defined()) buffers.parameters = parameters.data_ptr<float>();
  if (copies.defined()) buffers.copies = copies.data_ptr();
  if (norms.defined()) buffers.norms = norms.data_ptr<float>() + layout.decay_size - norms_begin;
  if (gradients.defined()) buffers.gradients = gradients.data_ptr<float>();
  engine->rebind(buffers);
}

void Transformer::Impl::allocate_gradients() {
  const at::Tensor& alike = parameters.defined() ? parameters : copies;
  if (!gradients.defined() || gradients.numel() != alike.numel()) {
    gradients = at::zeros_like(alike, at::kFloat);
  }
  rebind();
}

void Transformer::Impl::pad_to(int64_t padded) {
  for (at::Tensor* buffer : {&parameters, &copies}) {
    if (!buffer->defined() || buffer->numel() == padded) continue;
    at::Tensor larger = at::zeros({padded}, buffer->options());
    larger.narrow(0, 0, layout.total).copy_(buffer->narrow(0, 0, layout.total));
    *buffer = larger;
  }
  allocate_gradients();
}

void Transformer::Impl::share_out(int64_t padded, int64_t begin) {
  ST_CHECK(copies.defined() && num_models == 1 && begin <= layout.decay_size);
  norms_begin = begin;
  norms = at::zeros({padded - begin}, parameters.options());
  const int64_t count = layout.total - begin;
  norms.narrow(0, 0, count).copy_(parameters.narrow(0, begin, count));
  parameters.reset();
  pad_to(padded);
}

void Transformer::Impl::set_parameter(const ParameterSpec& spec, std::span<const float> values) {
  ST_CHECK(static_cast<int64_t>(values.size()) == spec.size);
  const at::Tensor source = at::from_blob(const_cast<float*>(values.data()), {spec.size},
                                          at::TensorOptions().dtype(at::kFloat));
  parameters.narrow(0, spec.offset, spec.size).copy_(source);
  copy_again(spec.offset, spec.size);
}

void Transformer::Impl::copy_again(int64_t begin, int64_t count) {
  if (copies.defined()) copies.narrow(0, begin, count).copy_(parameters.narrow(0, begin, count));
}

void Transformer::Impl::init(uint64_t seed) {
  std::vector<float> values, part;
  const auto parts = specs_by_name(layout);
  for (const ParameterSpec& whole : parameter_layout(config).specs) {
    values.resize(static_cast<size_t>(whole.size));
    init_parameter(whole, seed, values.data());
    const ParameterSpec& mine = *parts.at(whole.name);
    const SliceRuns runs = slice_runs(whole, mine, layout.slice);
    part.clear();
    for (int64_t i = 0; i < runs.count; ++i) {
      const float* run = values.data() + runs.begin + i * runs.stride;
      part.insert(part.end(), run, run + runs.size);
    }
    set_parameter(mine, part);
  }
}

at::Tensor Transformer::Impl::host_parameters() const {
  if (!parameters.defined()) {
    throw Error("internal error: the weights are shared out over a group of ranks");
  }
  return parameters.to(at::kCPU);
}

Transformer::Transformer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Transformer::~Transformer() = default;
Transformer::Transformer(Transformer&&) noexcept = default;
Transformer& Transformer::operator=(Transformer&&) noexcept = default;

Transformer::Transformer(const ModelConfig& config, const DeviceConfig& device, uint64_t seed,
                         ExpertSlice slice)
    : impl_(std::make_unique<Impl>(config, device, 1, slice)) {
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
  impl_->copy_again(0, impl_->layout.total);
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
