#include "smalltalk/lm/train/bench.hpp"

#include <gtest/gtest.h>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

TEST(BenchTest, MeasuresAStep) {
  const BenchResult result = run_bench(bench_case("tiny-step"), 0, DeviceConfig());
  EXPECT_GT(result.tokens_per_second, 0);
  EXPECT_GT(result.model_flops_per_second, 1e6 * result.tokens_per_second);
  EXPECT_GT(result.gemm_flops_per_second, 0);
}

TEST(BenchTest, NamesWhatThereIs) {
  for (const std::string& name : bench_names()) EXPECT_GT(bench_case(name).model.vocab_size, 0);
  EXPECT_THROW(bench_case("step"), Error);
}

}  // namespace
}  // namespace smalltalk
