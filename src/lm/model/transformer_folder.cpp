// A transformer from and to a model folder, as transformers has them: of LlamaForCausalLM (SwiGLU)
// or ArceeForCausalLM (squared ReLU).
#include "lm/model/model_config_file.hpp"
#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

namespace {

ParameterLayout layout_of_file(const ModelConfig& config, const std::filesystem::path& file) {
  try {
    return parameter_layout(config.resolved());
  } catch (const Error& error) {
    throw Error("'" + file.string() + "': " + error.what());
  }
}

}  // namespace

void Transformer::save(const std::filesystem::path& folder,
                       const std::map<std::string, std::string>& metadata) const {
  const at::Tensor host = impl_->host_parameters();
  const float* base = host.const_data_ptr<float>();
  std::map<std::string, TensorView> tensors;
  for (const ParameterSpec& spec : impl_->layout.specs) {
    tensors[spec.name] = {spec.shape, {base + spec.offset, static_cast<size_t>(spec.size)}};
  }
  // The weights last: a folder with weights is a whole one.
  write_text_atomically(config_file(folder), model_config_text(impl_->config, metadata));
  write_safetensors(weights_file(folder), tensors, metadata);
}

Transformer Transformer::load(const std::filesystem::path& folder, const DeviceConfig& device,
                              int64_t step) {
  const std::filesystem::path file_of_config = config_file(folder);
  const ModelConfig config = read_model_config(file_of_config);
  const std::filesystem::path weights = weights_file(folder, step);
  const SafetensorsFile file = read_safetensors(weights);
  // Looked at before anything of the model's size is allocated.
  for (const ParameterSpec& spec : layout_of_file(config, file_of_config).specs) {
    const auto found = file.tensors.find(spec.name);
    if (found == file.tensors.end()) {
      throw Error("'" + weights.string() + "' has no tensor '" + spec.name + "'");
    }
    if (found->second.shape != spec.shape) {
      throw Error("'" + weights.string() + "': tensor '" + spec.name +
                  "' has another shape than config.json says");
    }
  }
  auto impl = std::make_unique<Impl>(config, device);
  for (const ParameterSpec& spec : impl->layout.specs) {
    impl->set_parameter(spec, file.tensors.at(spec.name).values);
  }
  return Transformer(std::move(impl));
}

}  // namespace smalltalk
