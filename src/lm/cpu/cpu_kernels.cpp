#include "lm/cpu/cpu_kernels.hpp"

#include <cstdlib>

#include "lm/cpu/isa_table.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

std::vector<const CpuKernels*> available_cpu_kernels() {
  std::vector<const CpuKernels*> result;
  if (__builtin_cpu_supports("avx512f")) result.push_back(&avx512::kernels());
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    result.push_back(&avx2::kernels());
  }
  result.push_back(&sse2::kernels());
  return result;
}

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = []() -> const CpuKernels& {
    const std::vector<const CpuKernels*> available = available_cpu_kernels();
    const char* wanted = std::getenv("SMALLTALK_ISA");
    if (wanted == nullptr) return *available.front();
    std::string names;
    for (const CpuKernels* kernels : available) {
      if (std::string(wanted) == kernels->name) return *kernels;
      names += std::string(names.empty() ? "" : ", ") + kernels->name;
    }
    throw Error(std::string("SMALLTALK_ISA is '") + wanted + "': this processor has " + names);
  }();
  return chosen;
}

}  // namespace smalltalk
