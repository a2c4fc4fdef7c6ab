#include "lm/cpu/elementwise.hpp"

namespace smalltalk {

#define ST_DECLARE(set)                                \
  namespace set {                                      \
  extern const ElementwiseKernels elementwise_kernels; \
  }
ST_COPIES(ST_DECLARE)
#define ST_ADDRESS(set) &set::elementwise_kernels,

const KernelCopies<ElementwiseKernels>& elementwise_copies() {
  static const KernelCopies<ElementwiseKernels> copies{ST_COPIES(ST_ADDRESS)};
  return copies;
}

const ElementwiseKernels& elementwise() { return *elementwise_copies().best; }

}  // namespace smalltalk
