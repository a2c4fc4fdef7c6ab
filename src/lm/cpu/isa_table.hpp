// The copies of the kernels, one for each instruction set that CMakeLists.txt compiles them for.
#pragma once

#include "lm/cpu/cpu_kernels.hpp"

namespace smalltalk {
namespace avx512 {
const CpuKernels& kernels();
}
namespace avx2 {
const CpuKernels& kernels();
}
namespace sse2 {
const CpuKernels& kernels();
}
}  // namespace smalltalk
