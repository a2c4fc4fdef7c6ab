// Kernels are told apart by name, time is counted once, and the profiler sees what LibTorch does.
#include "device_profile.hpp"

#include <gtest/gtest.h>

#include <numeric>

#include "models_fixture.hpp"

namespace smalltalk {
namespace {

// Names as CUPTI gives them, of PyTorch 2.x on A100 to B200.
TEST(DeviceProfile, KernelsAreToldApartByName) {
  for (const auto& [name, kind] : std::initializer_list<std::pair<const char*, WorkKind>>{
           {"nvjet_tst_256x128_64x4_1x2_h_bz_coopA_NNT", WorkKind::product},
           {"nvjet_sm100_tst_128x256_64x4_2x1_2cta_v_bz_TNN", WorkKind::product},
           {"ampere_bf16_s16816gemm_bf16_128x256_ldg8_f2f_stages_64x3_tn", WorkKind::product},
           {"sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_"
            "execute_segment_k_off_kernel__5x_cublas",
            WorkKind::product},
           {"void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_"
            "align8>(cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8::Params)",
            WorkKind::product},
           {"void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float, "
            "__nv_bfloat16, true, false, false>(cublasLt::cublasSplitKParams<float>)",
            WorkKind::product},
           {"void gemv2T_kernel_val<int, int, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, "
            "128, 16, 4, 4, false, false>(float, float)",
            WorkKind::product},
           {"void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128, 128, 4, false, "
            "false, cutlass::bfloat16_t>, false, true>(pytorch_flash::Flash_fwd_params)",
            WorkKind::attention},
           {"void pytorch_flash::flash_bwd_dot_do_o_kernel<true, Flash_bwd_kernel_traits<64>>("
            "pytorch_flash::Flash_bwd_params)",
            WorkKind::attention},
           {"fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<"
            "cutlass::bfloat16_t, cutlass::arch::Sm80, true, 64, 64, 64>::Params)",
            WorkKind::attention},
           {"cudnn_generated_fort_native_sdpa_sm90_knob_7_64x128x128_4x1x1_kernel0_0",
            WorkKind::attention},
           {"void smalltalk::block::add_norm_kernel<4, __nv_bfloat16>(smalltalk::NormShape, float "
            "const*, __nv_bfloat16 const*)",
            WorkKind::elementwise},
           {"smalltalk::block::sum_parts_kernel(smalltalk::NormShape, long, float const*, float*)",
            WorkKind::elementwise},
           {"void smalltalk::block::softmax_kernel<__nv_bfloat16>(smalltalk::SoftmaxShape, float "
            "const*, long const*)",
            WorkKind::loss},
           {"smalltalk::update::adamw_kernel(smalltalk::UpdateState const*, "
            "smalltalk::UpdateBuffers, bool, long)",
            WorkKind::optimizer},
           {"void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, "
            "std::array<char*, 1ul>>(int, at::native::FillFunctor<float>)",
            WorkKind::elementwise},
           {"void at::native::reduce_kernel<512, 1, at::native::ReduceOp<double, "
            "at::native::func_wrapper_t<double, at::native::sum_functor<double>>>>",
            WorkKind::elementwise},
           {"void at::native::(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long>",
            WorkKind::elementwise},
           {"void at_cuda_detail::cub::DeviceRadixSortOnesweepKernel<long, long>",
            WorkKind::elementwise},
           {"void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda("
            "at::TensorIteratorBase&)::{lambda()#3}>",
            WorkKind::copy},
           {"void at::native::vectorized_elementwise_kernel<4, at::native::"
            "bfloat16_copy_kernel_cuda(at::TensorIteratorBase&)::{lambda(float)#1}>",
            WorkKind::copy},
           {"void at::native::(anonymous namespace)::CatArrayBatchedCopy<at::native::(anonymous "
            "namespace)::OpaqueType<4u>, unsigned int, 2, 64, 64>",
            WorkKind::copy},
           {"Memcpy DtoD (Device -> Device)", WorkKind::copy},
           {"Memset (Device)", WorkKind::copy},
           {"ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
            WorkKind::other},
       }) {
    EXPECT_EQ(kind_of_work(name), kind) << name;
  }
}

TEST(DeviceProfile, EachInstantCountsOnce) {
  const auto seconds = [](const std::vector<WorkInterval>& intervals, WorkKind kind) {
    return seconds_by_kind(intervals)[static_cast<size_t>(kind)];
  };
  using enum WorkKind;
  // A part within the whole, in any order; a gap; two that overlap.
  const std::vector<WorkInterval> intervals = {
      {product, 10, 20}, {attention, 0, 40}, {copy, 100, 130}, {loss, 120, 150}};
  EXPECT_NEAR(seconds(intervals, product), 10e-9, 1e-15);
  EXPECT_NEAR(seconds(intervals, attention), 30e-9, 1e-15);
  EXPECT_NEAR(seconds(intervals, copy), 20e-9, 1e-15);
  EXPECT_NEAR(seconds(intervals, loss), 30e-9, 1e-15);
  // The shorter of two that begin together is the part; nothing lasts no time.
  EXPECT_NEAR(seconds({{product, 0, 10}, {copy, 0, 30}, {other, 5, 5}}, product), 10e-9, 1e-15);
  EXPECT_EQ(seconds_by_kind({}), WorkSeconds{});
}

TEST(DeviceProfile, SeesTheOperationsOfATrainingStep) {
  Models models(tiny_model());
  models.engine.begin_training({});
  const auto tokens = random_tokens(4 * 65, 37, 5);
  const WorkSeconds seconds =
      profile_work(/*cuda=*/false, [&] { models.step(tokens, 4, 65, 0.01F); });
  for (const WorkKind kind : {WorkKind::product, WorkKind::attention, WorkKind::elementwise}) {
    EXPECT_GT(seconds[static_cast<size_t>(kind)], 0) << name_of(kind);
  }
  EXPECT_LT(std::accumulate(seconds.begin(), seconds.end(), 0.0), 60);
}

}  // namespace
}  // namespace smalltalk
