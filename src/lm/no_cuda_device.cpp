#include "device.hpp"
#include "smalltalk/core/error.hpp"

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

}  // namespace smalltalk
