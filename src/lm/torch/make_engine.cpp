// Which engine computes a model: the one place that knows all of them.
#include <ATen/core/Tensor.h>

#include "lm/cpu/cpu_engine.hpp"
#include "lm/torch/torch_engine.hpp"

namespace smalltalk {

std::shared_ptr<ThreadTeam> make_thread_team(const DeviceConfig& device) {
  return std::make_shared<ThreadTeam>(device.device == "cuda" ? 1
                                                              : static_cast<int>(device.threads));
}

std::unique_ptr<Engine> make_engine(const ModelConfig& config, const ParameterLayout& layout,
                                    const DeviceConfig& device, const at::Tensor& parameters,
                                    ThreadTeam& team, int64_t num_models) {
  if (device.device == "cuda") {
    return std::make_unique<TorchEngine>(config, layout, parameters.device(), device.precision,
                                         num_models);
  }
  // Ranks wait for each other within a layer, where the CPU's threads each go their own way.
  if (!layout.slice.is_all()) {
    return std::make_unique<TorchEngine>(config, layout, parameters.device(), device.precision);
  }
  return std::make_unique<CpuEngine>(config, layout, team, num_models);
}

}  // namespace smalltalk
