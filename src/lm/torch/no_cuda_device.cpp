#include "lm/torch/device.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

[[noreturn]] void no_cuda() {
  throw Error(
      "this program was built without CUDA (SMALLTALK_CUDA=OFF): set device.device = \"cpu\"");
}

}  // namespace

void use_device(int) { no_cuda(); }
DeviceMemory device_memory() { no_cuda(); }
void device_adamw(float*, const float*, float*, float*, int64_t, const AdamStep&) { no_cuda(); }
int64_t device_log_probs_scratch(const LossSizes&) { no_cuda(); }
void device_log_probs(const LossSizes&, const uint16_t*, const uint16_t*, const int64_t*, float*,
                      float*, float*) {
  no_cuda();
}
void device_d_logits(const LossSizes&, const uint16_t*, const uint16_t*, const int64_t*,
                     const float*, float, int64_t, int64_t, uint16_t*) {
  no_cuda();
}

struct DeviceGraph::Impl {};
DeviceGraph::DeviceGraph(const DeviceGraph*) { no_cuda(); }
DeviceGraph::~DeviceGraph() = default;
void DeviceGraph::run(const std::function<void()>&) { no_cuda(); }

}  // namespace smalltalk
