#include "lm/cpu/isa_table.hpp"

#include "lm/cpu/isa_kernels.hpp"

#define ST_TEXT_OF(name) #name
#define ST_TEXT(name) ST_TEXT_OF(name)

namespace smalltalk::ST_ISA {

const CpuKernels& kernels() {
  static constexpr CpuKernels table = {
      ST_TEXT(ST_ISA),         product,       fits_head,         head_attention_forward,
      head_attention_backward, softmax_chunk, softmax_chunk_sums};
  return table;
}

}  // namespace smalltalk::ST_ISA
