// The same models on a GPU. Skipped where there is none.
#include <gtest/gtest.h>

#include <cmath>

#include "fixtures.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/lm/trainer.hpp"

namespace smalltalk {
namespace {

DeviceConfig gpu(const std::string& precision) {
  DeviceConfig device;
  device.device = "cuda";
  device.precision = precision;
  return device;
}

// Why there is no GPU, or nothing.
std::string missing_gpu() {
  try {
    configure_runtime(gpu("float32"), 0);
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

double score(const Transformer& model) {
  const auto tokens = random_tokens(4 * 65, 37, 5);
  std::vector<double> head(4);
  model.log_likelihoods(tokens, 4, 65, std::vector<int64_t>{65}, 4, head);
  return head[0] + head[1] + head[2] + head[3];
}

TEST(CudaTest, ScoresAndGradientsAgreeWithTheCpu) {
  const std::string missing = missing_gpu();
  if (!missing.empty()) GTEST_SKIP() << missing;
  const ModelConfig config = tiny_model(FeedForward::swiglu, false, 2);
  Transformer cpu(config, DeviceConfig(), 3), cuda(config, gpu("float32"), 3);
  EXPECT_NEAR(score(cuda), score(cpu), 1e-3 * std::abs(score(cpu)));
  const auto tokens = random_tokens(4 * 65, 37, 5);
  const auto expected = loss_gradients(cpu, tokens, 4, 65, nullptr);
  for (const auto& [name, values] : loss_gradients(cuda, tokens, 4, 65, nullptr)) {
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_NEAR(values[i], expected.at(name)[i], 1e-3) << name;
    }
  }
}

TEST(CudaTest, TrainsLikeTheCpu) {
  const std::string missing = missing_gpu();
  if (!missing.empty()) GTEST_SKIP() << missing;
  TrainConfig config;
  config.steps = 20;
  config.batch_size = 8;
  config.save_interval = 0;
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  std::vector<double> losses;
  for (const DeviceConfig& device : {DeviceConfig(), gpu("float32"), gpu("bf16-mixed")}) {
    Transformer model(tiny_model(), device, 1);
    losses.push_back(Trainer(model, config, options).run(random_rows(17, 37), 20).last_loss);
  }
  EXPECT_NEAR(losses[1], losses[0], 1e-2);
  EXPECT_NEAR(losses[2], losses[0], 1e-1);
}

}  // namespace
}  // namespace smalltalk
