// Predicted times against sums by hand, and what the paper's models should reach.
#include "smalltalk/lm/train/roofline.hpp"

#include <gtest/gtest.h>

namespace smalltalk {
namespace {

ModelConfig paper_model(int64_t hidden, int64_t layers, int64_t heads) {
  ModelConfig model;
  model.hidden_size = hidden;
  model.num_layers = layers;
  model.num_heads = heads;
  model.intermediate_size = 4 * hidden;
  model.feed_forward = FeedForward::relu2;
  model.vocab_size = 32'000;
  return model;
}

const Accelerator& h100() { return accelerators()[1]; }

StepTime step_of(const ModelConfig& model, int64_t batch, Recompute recompute, int group,
                 const Accelerator& accelerator) {
  TrainConfig train;
  train.batch_size = batch;
  train.recompute = recompute;
  return predicted_step(model, train, 1024, group, accelerator);
}

TEST(Roofline, IsTheSumByHand) {
  const ModelConfig model = paper_model(1024, 24, 16);
  const Accelerator round{"round", 1e15, 1e12};
  const StepTime time = step_of(model, 1, Recompute::none, 1, round);
  const double tokens = 1024, h = 1024;
  // 3 + 1 + 4 + 4 matrices of H x H a layer, three passes.
  EXPECT_NEAR(time.products, tokens * 24 * 3 * 2 * 12 * h * h / 0.72e15, 1e-9);
  EXPECT_NEAR(time.attention, tokens * 24 * 3.5 * 2 * 1024 * h / 0.45e15, 1e-9);
  EXPECT_NEAR(time.elementwise, tokens * 24 * 116 * h / 0.85e12, 1e-9);
  EXPECT_NEAR(time.loss, tokens * 32'000 * (6 * h / 0.72e15 + 18 / 0.85e12), 1e-9);
  EXPECT_NEAR(time.product_flops, 0.72e15 * (time.products + time.loss_products), 1e3);
  EXPECT_NEAR(time.loss - time.loss_products, tokens * 32'000 * 18 / 0.85e12, 1e-9);
  EXPECT_EQ(time.communication, 0);
  const StepTime again = step_of(model, 1, Recompute::full, 1, round);
  EXPECT_NEAR(again.products / time.products, 4.0 / 3, 1e-9);
  EXPECT_NEAR(again.elementwise / time.elementwise, (116.0 + 48) / 116, 1e-9);
  EXPECT_LT(again.mfu, time.mfu);
  EXPECT_GT(step_of(model, 8, Recompute::none, 8, round).communication, 0);
}

// Matrices of all experts are read for 16 segments at a time.
TEST(Roofline, MergingExpertsIsTheSumByHand) {
  ModelConfig model = paper_model(1024, 24, 16);
  const Accelerator round{"round", 1e15, 1e12};
  const double plain = step_of(model, 16, Recompute::none, 1, round).products;
  model.merged_experts = 8;
  model.segment_tokens = 256;
  const StepTime time = step_of(model, 16, Recompute::none, 1, round);
  const double numbers = 8.0 * 1024 * 1024, segments = 64, blocks = 4;
  // Bound by memory, all four: forward and on the way back, in bfloat16, the matrices of experts
  // read and merged ones written; experts' gradients in float32; weights' gradients.
  const double merge = 2 * numbers * (8 * blocks + segments);
  const double gradients = numbers * (2 * segments + 8 * 8 * blocks);
  EXPECT_NEAR(time.products - plain, 24 * (3 * merge + gradients) / 0.85e12, 1e-9);
  const StepTime other = step_of(paper_model(1024, 24, 16), 16, Recompute::none, 1, round);
  EXPECT_NEAR(time.product_flops - other.product_flops, 24 * 4 * 2 * 8 * segments * numbers, 1e3);
}

// Each rank of eight merges an eighth of every matrix for eight times as many segments.
TEST(Roofline, CuttingExpertsIsTheSumByHand) {
  ModelConfig model = paper_model(1024, 24, 16);
  const Accelerator round{"round", 1e15, 1e12};
  model.merged_experts = 8;
  model.segment_tokens = 256;
  TrainConfig train;
  train.batch_size = 128;
  train.recompute = Recompute::none;
  const StepTime whole = predicted_step(model, train, 1024, 8, round);
  train.tensor_parallel = true;
  const StepTime cut = predicted_step(model, train, 1024, 8, round);
  EXPECT_NEAR(cut.product_flops / whole.product_flops, 1, 1e-12);
  // Inputs, outputs and three on the way back, of seven ranks' tokens, in bfloat16.
  const double tokens = 16 * 1024, h = 1024, vocab = 32'000;
  const double layers = 24 * 5 * 7 * tokens * h * 2;
  const double gathered = 2 * (vocab * h + 4 * h * h + 8 * h);  // embedding, attention and router
  EXPECT_NEAR(cut.communication, (layers + gathered) / 300e9, 1e-9);
  // The norm and AdamW of an eighth of all, and zeros for what this rank holds.
  const double experts = 24.0 * 8 * 8 * h * h, rest = vocab * h + 24 * (4 * h * h + 10 * h) + h;
  EXPECT_NEAR(cut.optimizer, ((experts + rest) / 8 * 38 + 4 * (experts / 8 + rest)) / 0.85e12,
              1e-6);
  EXPECT_LT(cut.optimizer, whole.optimizer);
}

// The table of src/lm/README.md.
TEST(Roofline, ThePapersModelsReachHalfOfAnH100) {
  struct Row {
    const char* name;
    ModelConfig model;
    int64_t batch;
    Recompute recompute;
    int group;
    double goal;
  };
  for (const Row& row :
       {Row{"335M", paper_model(1024, 24, 16), 128, Recompute::none, 1, 0.50},
        Row{"1.3B", paper_model(2048, 24, 16), 128, Recompute::none, 1, 0.55},
        Row{"7B", paper_model(4096, 32, 32), 512, Recompute::selective, 8, 0.50}}) {
    EXPECT_GE(step_of(row.model, row.batch, row.recompute, row.group, h100()).mfu, row.goal);
    std::printf("%s", row.name);
    for (const Accelerator& accelerator : accelerators()) {
      const StepTime time = step_of(row.model, row.batch, row.recompute, row.group, accelerator);
      const auto share = [&](double part) { return 100 * part / time.total(); };
      std::printf(
          " | %s %.0f ms, %.0f %% (products %.0f, attention %.0f, element-wise %.0f, loss %.0f, "
          "optimiser %.0f, group %.0f)",
          accelerator.name.c_str(), 1e3 * time.total(), 100 * time.mfu, share(time.products),
          share(time.attention), share(time.elementwise), share(time.loss), share(time.optimizer),
          share(time.communication));
      EXPECT_LT(time.mfu, 0.72);
    }
    std::printf("\n");
  }
}

}  // namespace
}  // namespace smalltalk
