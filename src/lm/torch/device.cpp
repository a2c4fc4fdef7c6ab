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
