// The paper's figures are the independent truth: SmallTalk LM, tables 1 to 3 and appendix A.3.
#include "smalltalk/core/experiment/flops.hpp"

#include <gtest/gtest.h>

#include <cmath>

namespace smalltalk {
namespace {

ModelConfig paper_model(int64_t hidden, int64_t layers, int64_t heads) {
  ModelConfig model;
  model.vocab_size = 32'000;
  model.hidden_size = hidden;
  model.num_layers = layers;
  model.num_heads = heads;
  model.feed_forward = FeedForward::relu2;
  return model;
}

ModelConfig paper_335m() { return paper_model(1024, 24, 16); }
ModelConfig paper_1300m() { return paper_model(2048, 24, 16); }
ModelConfig paper_router() { return paper_model(96, 12, 12); }

// E experts, each trained for `steps` of 128 sequences; routers for 128,000 steps of 32.
Experiment paper_experiment(const ModelConfig& expert, int64_t num_experts, int64_t steps) {
  Experiment e;
  e.data.seq_length = 1024;
  e.mixture.experts = num_experts;
  e.mixture.prefix_tokens = 256;
  e.mixture.rounds = 100;
  e.mixture.sequences_per_round = 1280 * 32 * num_experts;
  e.router_model = paper_router();
  e.router_train.batch_size = 32;
  e.expert_model = expert;
  e.expert_train.steps = steps;
  e.expert_train.batch_size = 128;
  e.validate();
  return e;
}

TEST(Flops, ForwardPerToken) {
  EXPECT_NEAR(forward_flops(paper_335m(), 1, 1024) / 1024, 0.770e9, 0.0005e9);
  EXPECT_NEAR(forward_flops(paper_1300m(), 1, 1024) / 1024, 2.748e9, 0.0005e9);
  EXPECT_NEAR(forward_flops(paper_router(), 1, 1024) / 1024, 0.01361e9, 0.000005e9);
  EXPECT_NEAR(forward_flops(paper_router(), 1, 256) / 256, 0.01007e9, 0.000005e9);
  EXPECT_NEAR(forward_flops(paper_router(), 1, 256), 2.58e9, 0.005e9);
  EXPECT_NEAR(forward_flops(paper_router(), 1, 32), 0.29e9, 0.005e9);
}

TEST(Flops, GrowWithSequencesAndTriplesInTraining) {
  const double one = forward_flops(paper_router(), 1, 256);
  EXPECT_DOUBLE_EQ(forward_flops(paper_router(), 7, 256), 7 * one);
  EXPECT_DOUBLE_EQ(train_flops(paper_router(), 7, 256), 21 * one);
}

TEST(Flops, SwigluHasThreeMatrices) {
  ModelConfig plain = paper_335m();
  plain.intermediate_size = 3000;
  ModelConfig gated = plain;
  gated.feed_forward = FeedForward::swiglu;
  gated.intermediate_size = 2000;  // the same number of weights
  EXPECT_DOUBLE_EQ(forward_flops(gated, 1, 64), forward_flops(plain, 1, 64));
  EXPECT_EQ(parameter_count(gated), parameter_count(plain));
}

TEST(Flops, GroupedHeadsSaveKeysAndValues) {
  ModelConfig full = paper_335m();
  ModelConfig grouped = full;
  grouped.num_kv_heads = 4;  // of 16: key and value keep a quarter of their weights
  const int64_t saved_weights = 24 * 2 * 1024 * 768;
  EXPECT_EQ(parameter_count(full) - parameter_count(grouped), saved_weights);
  EXPECT_DOUBLE_EQ(forward_flops(full, 1, 10) - forward_flops(grouped, 1, 10),
                   10.0 * 2 * saved_weights);
}

struct Row {
  ModelConfig expert;
  int64_t num_experts;
  int64_t steps;
  double dense_train;  // 1e19
  double overhead;     // 1e19
};

TEST(Flops, CostsOfTable3) {
  const std::vector<Row> rows = {
      {paper_335m(), 4, 256'000, 31.02, 0.22},     {paper_335m(), 8, 256'000, 62.03, 0.75},
      {paper_335m(), 16, 256'000, 124.06, 2.71},   {paper_335m(), 32, 256'000, 248.12, 10.28},
      {paper_1300m(), 4, 512'000, 221.33, 0.36},   {paper_1300m(), 16, 512'000, 885.32, 4.87},
      {paper_1300m(), 32, 512'000, 1770.65, 18.94}};
  for (const Row& row : rows) {
    const Experiment e = paper_experiment(row.expert, row.num_experts, row.steps);
    const MixtureFlops flops = mixture_flops(e, row.steps * 128 * row.num_experts);
    EXPECT_NEAR(flops.expert_train / 1e19, row.dense_train, 0.01);
    // The paper bills router training at full sequences.
    const double overhead = flops.router_train_upper + flops.router_scoring + flops.sharding;
    EXPECT_NEAR(overhead / 1e19, row.overhead, 0.005);
    EXPECT_LT(flops.router_train, flops.router_train_upper / 4);
    EXPECT_DOUBLE_EQ(flops.total(), flops.expert_train + overhead);
  }
}

TEST(Flops, InferenceOfTable3) {
  const struct {
    ModelConfig expert;
    int64_t num_experts;
    double dense, overhead;  // 1e12
  } rows[] = {{paper_335m(), 4, 0.79, 0.01},  {paper_335m(), 8, 0.79, 0.02},
              {paper_335m(), 16, 0.79, 0.04}, {paper_335m(), 32, 0.79, 0.08},
              {paper_1300m(), 4, 2.81, 0.01}, {paper_1300m(), 32, 2.81, 0.08}};
  for (const auto& row : rows) {
    const Experiment e = paper_experiment(row.expert, row.num_experts, 1);
    const double dense = forward_flops(row.expert, 1, 1024);
    EXPECT_NEAR(dense / 1e12, row.dense, 0.005);
    EXPECT_NEAR((mixture_flops(e, 0).inference_per_sequence - dense) / 1e12, row.overhead, 0.005);
  }
}

// 31 rounds teach, of 24 sequences each: rated once and learned from twice, at three times that.
TEST(Flops, NgramsShardAtNextToNoCost) {
  Experiment experiment;
  experiment.data.seq_length = 64;
  experiment.mixture.experts = 4;
  experiment.mixture.prefix_tokens = 16;
  experiment.mixture.rounds = 93;
  experiment.mixture.sequences_per_round = 24;
  const MixtureFlops by_routers = mixture_flops(experiment, 1000);
  experiment.mixture.sharding = Sharding::ngrams;
  const MixtureFlops by_ngrams = mixture_flops(experiment, 1000);
  EXPECT_DOUBLE_EQ(by_ngrams.sharding, 4.0 * (16 + 15) * (1000 + 2 * 3 * 31 * 24));
  EXPECT_DOUBLE_EQ(by_routers.total() - by_ngrams.total(),
                   by_routers.sharding - by_ngrams.sharding);
}

TEST(Flops, UnknownVocabularyIsTheOneToTrain) {
  Experiment known = paper_experiment(paper_335m(), 4, 10);
  Experiment unknown = known;
  unknown.data.vocab_size = 32'000;
  unknown.router_model.vocab_size = 0;
  unknown.expert_model.vocab_size = 0;
  EXPECT_DOUBLE_EQ(mixture_flops(known, 5).total(), mixture_flops(unknown, 5).total());
}

int64_t dense_steps(const Experiment& e, int64_t batch, double flops) {
  return steps_for(flops, [&](int64_t steps) { return dense_flops(e, batch, steps); });
}

TEST(Flops, DenseStepsAreTheFewestThatReach) {
  const Experiment e = paper_experiment(paper_335m(), 4, 256'000);
  const double step = train_flops(e.expert_model, 512, 1024);
  EXPECT_EQ(dense_steps(e, 512, 0), 0);
  EXPECT_EQ(dense_steps(e, 512, step), 1);
  EXPECT_EQ(dense_steps(e, 512, step * 1.001), 2);
  // The mixture of the first row with its overhead of 0.7 %.
  const double total = mixture_flops(e, 256'000 * 128 * 4).total();
  const int64_t steps = dense_steps(e, 512, total);
  EXPECT_GE(static_cast<double>(steps) * step, total);
  EXPECT_LT(static_cast<double>(steps - 1) * step, total);
  EXPECT_EQ(dense_steps(e, 512, 256'000 * step), 256'000);
}

// A step whose FLOPs fill a double: products are rounded, and quotients to either side of a whole
// number of steps.
TEST(Flops, DenseStepsAreExactWhereDivisionIsNot) {
  Experiment e = paper_experiment(paper_335m(), 4, 256'000);
  e.data.seq_length = 1021;
  const int64_t batch = 500;
  const double step = train_flops(e.expert_model, batch, e.data.seq_length);
  int above = 0, below = 0;  // how often a plain division would be one step off
  for (int64_t k = (1 << 20) - 1000; k < (1 << 20) + 1000; ++k) {
    const double flops = static_cast<double>(k) * step;
    const double more = std::nextafter(flops, 2 * flops);
    above += std::ceil(flops / step) > static_cast<double>(k);
    below += std::ceil(more / step) <= static_cast<double>(k);
    ASSERT_EQ(dense_steps(e, batch, flops), k);
    ASSERT_EQ(dense_steps(e, batch, more), k + 1);
  }
  EXPECT_GT(above, 0);
  EXPECT_GT(below, 0);
}

TEST(Flops, ParametersOfTable1) {
  // 12 L H^2 + V H, and (2 L + 1) H for the norms, which the paper does not count.
  EXPECT_EQ(parameter_count(paper_router()), 12 * 12 * 96 * 96 + 32'000 * 96 + 25 * 96);
  EXPECT_NEAR(static_cast<double>(parameter_count(paper_router())), 4.4e6, 0.05e6);
  EXPECT_NEAR(static_cast<double>(parameter_count(paper_335m())), 335e6, 1e6);
  EXPECT_NEAR(static_cast<double>(parameter_count(paper_1300m())), 1.3e9, 0.05e9);
  ModelConfig untied = paper_router();
  untied.tie_embeddings = false;
  EXPECT_EQ(parameter_count(untied) - parameter_count(paper_router()), 32'000 * 96);
}

}  // namespace
}  // namespace smalltalk
