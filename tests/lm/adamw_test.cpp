// AdamW against LibTorch's own, weight decay on matrices only, and clipping.
#include <gtest/gtest.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>

#include <cmath>

#include "fixtures.hpp"
#include "lm/cpu/elementwise.hpp"
#include "lm/train/sharded_adamw.hpp"

namespace smalltalk {
namespace {

TrainConfig adam_config(double clip) {
  TrainConfig config;
  config.weight_decay = 0.3;
  config.adam_beta1 = 0.8;
  config.adam_beta2 = 0.95;
  config.adam_eps = 1e-6;
  config.grad_clip = clip;
  return config;
}

class AdamWTest : public testing::TestWithParam<double> {};
INSTANTIATE_TEST_SUITE_P(Clips, AdamWTest, testing::Values(0.0, 0.5, 1e6));

TEST_P(AdamWTest, AgreesWithLibTorch) {
  const TrainConfig config = adam_config(GetParam());
  Transformer model(tiny_model(), DeviceConfig(), 2);
  Transformer::Impl& impl = model.impl();
  ShardedAdamW ours(impl, config, HostCollectives(), 1024);

  const int64_t matrices = impl.layout.decay_size, norms = impl.layout.total - matrices;
  torch::Tensor decaying = impl.parameters.narrow(0, 0, matrices).clone().requires_grad_();
  torch::Tensor plain = impl.parameters.narrow(0, matrices, norms).clone().requires_grad_();
  const auto options = [&](double decay) {
    auto result = std::make_unique<torch::optim::AdamWOptions>(0.0);
    result->betas({config.adam_beta1, config.adam_beta2}).eps(config.adam_eps).weight_decay(decay);
    return result;
  };
  torch::optim::AdamW theirs(std::vector<torch::optim::OptimizerParamGroup>{
      {{decaying}, options(config.weight_decay)}, {{plain}, options(0)}});

  torch::manual_seed(1);
  for (int64_t t = 0; t < 10; ++t) {
    const torch::Tensor gradient = torch::randn({impl.layout.total}) * 0.1;
    impl.gradients.copy_(gradient);
    const double lr = 0.01 * static_cast<double>(t + 1);
    ours.begin_step({lr});
    const auto result = ours.finish_step();
    EXPECT_NEAR(result.gradient_norm, gradient.norm().item<double>(), 1e-4);
    EXPECT_EQ(impl.gradients.abs().sum().item<double>(), 0);

    decaying.mutable_grad() = gradient.narrow(0, 0, matrices).clone();
    plain.mutable_grad() = gradient.narrow(0, matrices, norms).clone();
    if (config.grad_clip > 0) {
      torch::nn::utils::clip_grad_norm_({decaying, plain}, config.grad_clip);
    }
    for (auto& group : theirs.param_groups()) group.options().set_lr(lr);
    theirs.step();
    const torch::Tensor expected = torch::cat({decaying, plain}).detach();
    EXPECT_LT((impl.parameters - expected).abs().max().item<double>(), 2e-6) << t;
  }
}

TEST(AdamWTest, FirstStepInClosedForm) {
  float parameter = 2, first = 0, second = 0;
  float gradient = -0.25F;
  AdamStep step{};
  step.lr = 0.1F;
  step.beta1 = 0.9F;
  step.beta2 = 0.99F;
  step.eps = 0;
  step.weight_decay = 0.5F;
  step.gradient_scale = 1;
  step.correction1 = 0.1F;
  step.correction2_root = std::sqrt(0.01F);
  elementwise().adamw(&parameter, &gradient, &first, &second, 1, step);
  // The corrected moments are g and g^2: a step of lr against the sign, after decay by lr * 0.5.
  EXPECT_NEAR(parameter, 2 * 0.95 + 0.1, 1e-6);
  EXPECT_EQ(gradient, 0);
}

TEST(AdamWTest, LeavesWeightsAloneWhenTheNormIsNotFinite) {
  Transformer model(tiny_model(), DeviceConfig(), 2);
  Transformer::Impl& impl = model.impl();
  ShardedAdamW optimizer(impl, adam_config(1), HostCollectives(), 1024);
  const torch::Tensor before = impl.parameters.clone();
  impl.gradients[5] = NAN;
  optimizer.begin_step({0.1});
  EXPECT_FALSE(optimizer.finish_step().finite());
  EXPECT_TRUE(torch::equal(before, impl.parameters));
}

}  // namespace
}  // namespace smalltalk
