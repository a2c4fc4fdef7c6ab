#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk {

#define ST_DECLARE(set)            \
  namespace set {                  \
  extern const CpuKernels kernels; \
  }
ST_COPIES(ST_DECLARE)
#define ST_ADDRESS(set) &set::kernels,

const KernelCopies<CpuKernels>& cpu_kernel_copies() {
  static const KernelCopies<CpuKernels> copies{ST_COPIES(ST_ADDRESS)};
  return copies;
}

const CpuKernels& cpu_kernels() { return *cpu_kernel_copies().best; }

}  // namespace smalltalk
