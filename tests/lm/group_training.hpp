// Training of one tiny model by a group, for tests that compare groups of different sizes.
#pragma once

#include <gtest/gtest.h>

#include <cmath>

#include "fixtures.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {

struct Trained {
  std::vector<double> losses;  // of each step
  std::vector<float> weights;
};

constexpr int64_t kGroupSteps = 60;

// eps is large, so that AdamW is a smooth function of the gradients: with 1e-8, an element whose
// gradient is all rounding moves by lr in a direction that is chance.
inline TrainConfig group_training_config(int64_t micro_batch_size) {
  TrainConfig config;
  config.steps = kGroupSteps;
  config.batch_size = 12;
  config.micro_batch_size = micro_batch_size;
  config.lr = 1e-2;
  config.adam_eps = 1e-3;
  config.grad_clip = 0.5;
  config.warmup_steps = 5;
  config.save_interval = 0;
  return config;
}

// 24 rows again and again: there is something to learn.
inline RowSource few_rows() {
  const RowSource fresh = random_rows(13, 37);
  return {fresh.row_tokens, [fresh](int64_t first, int64_t count, std::span<int64_t> tokens) {
            for (int64_t row = 0; row < count; ++row) {
              fresh.read((first + row) % 24, 1,
                         tokens.subspan(row * fresh.row_tokens, fresh.row_tokens));
            }
          }};
}

// What slices of a model may differ by, which another engine computes: some 1e-4, as measured.
constexpr double kOtherEngine = 50;

// Buckets of 1 KB cut the model into a dozen. The weights are, if there is a folder, those that the
// group writes there, known to the first rank: where products are in bfloat16 each has its share,
// and where experts are cut its slice.
inline Trained train_in_group(const HostCollectives& group, const ModelConfig& model_config,
                              int64_t micro_batch_size, int64_t bucket_bytes = 1024,
                              const DeviceConfig& device = {},
                              const std::filesystem::path& folder = {}, bool cut_experts = false) {
  const ExpertSlice slice = cut_experts ? ExpertSlice{group.rank, group.size} : ExpertSlice();
  Transformer model(model_config, device, 1, slice);
  TrainOptions options;
  options.name = "test";
  options.show_progress = false;
  options.group = group;
  options.bucket_bytes = bucket_bytes;
  Trainer trainer(model, group_training_config(micro_batch_size), options);
  Trained result;
  for (int64_t step = 0; step < kGroupSteps; ++step) {
    result.losses.push_back(trainer.run(few_rows(), step + 1).last_loss);
  }
  if (folder.empty()) {
    result.weights = model.weights();
    return result;
  }
  trainer.save_model(folder, {});
  if (group.rank == 0) result.weights = Transformer::load(folder, DeviceConfig()).weights();
  return result;
}

// A group adds the same numbers in another order. Gradients here are below 1, and their sums of
// some hundred terms differ by 1e-8 to 1e-7; a step of AdamW passes that on times lr / eps = 10 at
// most, in chance directions, for 60 steps: some 1e-6, as measured. Losses travel as float32 of
// 5e-7. Another engine rounds every sum otherwise, and is allowed `factor` times as much.
inline void expect_same_training(const Trained& one, const Trained& other, double factor = 1) {
  ASSERT_EQ(one.losses.size(), other.losses.size());
  for (size_t i = 0; i < one.losses.size(); ++i) {
    EXPECT_NEAR(one.losses[i], other.losses[i], factor * 5e-6) << "step " << i;
  }
  ASSERT_EQ(one.weights.size(), other.weights.size());
  double largest = 0;
  for (size_t i = 0; i < one.weights.size(); ++i) {
    largest = std::max<double>(largest, std::abs(one.weights[i] - other.weights[i]));
  }
  EXPECT_LT(largest, factor * 1e-5);
}

}  // namespace smalltalk
