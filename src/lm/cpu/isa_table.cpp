#include "lm/cpu/isa_kernels.hpp"

namespace smalltalk::ST_ISA {

extern const CpuKernels kernels;
const CpuKernels kernels = {
    .instruction_set = ST_ISA_NAME,
    .product = product,
    .fits_head = fits_head,
    .head_attention_forward = head_attention_forward,
    .head_attention_backward = head_attention_backward,
    .softmax_chunk = softmax_chunk,
    .softmax_chunk_sums = softmax_chunk_sums,
};

}  // namespace smalltalk::ST_ISA
