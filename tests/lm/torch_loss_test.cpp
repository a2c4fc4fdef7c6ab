// The fused projection and cross-entropy in LibTorch operations, on the CPU, against float64.
#include "lm/torch/torch_loss.hpp"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "loss_reference.hpp"

namespace smalltalk {
namespace {

at::Tensor tensor(const std::vector<float>& values, int64_t rows) {
  return at::from_blob(const_cast<float*>(values.data()),
                       {rows, static_cast<int64_t>(values.size()) / rows}, at::kFloat);
}

std::vector<float> values(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kFloat).contiguous();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

class TorchLossTest : public testing::TestWithParam<std::pair<LossShape, float>> {};

TEST_P(TorchLossTest, AgreesWithFloat64) {
  const auto [shape, spread] = GetParam();
  const LossCase c = random_loss_case(shape, spread);
  const float scale = 1.0F / static_cast<float>(shape.tokens);
  const LossReference r = loss_reference(c, scale);
  const at::Tensor hidden = tensor(c.hidden, shape.tokens), head = tensor(c.head, shape.vocab);
  const at::Tensor targets =
      at::from_blob(const_cast<int64_t*>(c.targets.data()), {shape.tokens}, at::kLong);
  at::Tensor d_hidden = at::full_like(hidden, 7), d_head = at::zeros_like(head);
  const double loss =
      fused_cross_entropy(hidden, head, targets, scale, d_hidden, d_head).item<double>();
  EXPECT_NEAR(loss, r.loss, 1e-5 * std::abs(r.loss));
  expect_near(values(d_hidden), r.d_hidden, 1e-4);
  expect_near(values(d_head), r.d_head, 1e-4);
  const TargetScores scores = fused_target_scores(hidden, head, targets);
  expect_near(values(scores.log_probs), r.log_probs, 1e-5);
  EXPECT_EQ(values(scores.greedy), r.greedy);

  fused_cross_entropy(hidden, head, targets, scale, d_hidden, d_head);
  std::vector<double> twice = r.d_head;
  for (double& value : twice) value *= 2;
  expect_near(values(d_head), twice, 1e-4);

  // bfloat16 without the kernels: its values, rounded once.
  at::Tensor d_rounded = at::empty_like(hidden, at::kBFloat16);
  fused_cross_entropy(hidden.to(at::kBFloat16), head.to(at::kBFloat16), targets, scale, d_rounded,
                      d_head);
  EXPECT_NEAR(d_rounded.to(at::kFloat).norm().item<double>(), d_hidden.norm().item<double>(),
              0.05 * d_hidden.norm().item<double>());
}

// Tokens and vocabulary below, at and above the tiles; logits of a few hundred.
INSTANTIATE_TEST_SUITE_P(Shapes, TorchLossTest,
                         testing::Values(std::pair(LossShape{5, 8, 2}, 1.0F),
                                         std::pair(LossShape{512, 8, 60}, 1.0F),
                                         std::pair(LossShape{1100, 4, 33}, 1.0F),
                                         std::pair(LossShape{20, 4, 32768}, 0.5F),
                                         std::pair(LossShape{20, 4, 70000}, 0.5F),
                                         std::pair(LossShape{40, 16, 50}, 8.0F)));

}  // namespace
}  // namespace smalltalk
