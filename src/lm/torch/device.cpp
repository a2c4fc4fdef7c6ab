#include "lm/torch/device.hpp"

#include <dlfcn.h>

#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

void* load_library() {
  if (void* library = ::dlopen("libsmalltalk_cuda.so", RTLD_NOW | RTLD_LOCAL)) return library;
  throw Error(
      "cannot compute on GPUs: " + std::string(::dlerror()) +
      ". Set device.device = \"cpu\", or build with SMALLTALK_CUDA=ON where this is to run");
}

}  // namespace

int gpu_of_rank(int local_rank, int count) {
  if (count == 0) {
    throw Error("no GPU is visible: set device.device = \"cpu\", or ask for a GPU");
  }
  if (count == 1 || local_rank < count) return count == 1 ? 0 : local_rank;
  throw Error("rank " + std::to_string(local_rank) + " of this machine finds only " +
              std::to_string(count) + " GPUs: start at most one rank a GPU");
}

void* cuda_function(const char* name) {
  static void* const library = load_library();
  if (void* function = ::dlsym(library, name)) return function;
  throw Error("libsmalltalk_cuda.so is of another build: it has no " + std::string(name));
}

Device& cuda_device() {
  static Device* const device =
      reinterpret_cast<decltype(&smalltalk_cuda_device)>(cuda_function("smalltalk_cuda_device"))();
  return *device;
}

}  // namespace smalltalk
