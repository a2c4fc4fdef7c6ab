// How a Lory model weighs its experts: figures of weights written by hand, and of models whose
// routers' choice is known.
#include "mixture/evaluation/lory_routing.hpp"

#include <gtest/gtest.h>

#include <cmath>

#include "smalltalk/core/system/random.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {
namespace {

constexpr double kNear = 1e-6;

// Of sequences of three segments of 8 tokens, the first of which counts nothing.
ScoreMatrix sums_of(const std::vector<RowRouting>& sequences, int64_t layers, int64_t experts,
                    int64_t targets) {
  const int64_t width = routing_sums_width(layers, experts);
  ScoreMatrix sums(std::ssize(sequences), width);
  for (int64_t i = 0; i < std::ssize(sequences); ++i) {
    std::vector<double> row(static_cast<size_t>(width));
    sum_routing(sequences[static_cast<size_t>(i)], experts, targets, row);
    std::ranges::copy(row, sums.row(i).begin());
  }
  return sums;
}

RowRouting three_segments(std::vector<float> weights) {
  return {{{0, true}, {8, false}, {16, false}}, std::move(weights)};
}

// Two layers of four experts. In the first, expert 0 has 0.7, then 0.4 of the weight, and expert 1
// 0.6; in the second all weigh alike.
const std::vector<RowRouting> kByHand = {
    three_segments({0.25F, 0.25F, 0.25F, 0.25F, 0.7F,  0.1F,  0.1F,  0.1F,  //
                    0.4F,  0.6F,  0,     0,                                 //
                    0.25F, 0.25F, 0.25F, 0.25F, 0.25F, 0.25F, 0.25F, 0.25F,
                    0.25F, 0.25F, 0.25F, 0.25F}),
    three_segments({0.25F, 0.25F, 0.25F, 0.25F, 0,     0,     0,     1,  //
                    0.5F,  0,     0.5F,  0,                              //
                    0.25F, 0.25F, 0.25F, 0.25F, 0.25F, 0.25F, 0.25F, 0.25F,
                    0.25F, 0.25F, 0.25F, 0.25F})};

TEST(LoryRouting, FiguresByHand) {
  const LoryRouting found = lory_routing(sums_of(kByHand, 2, 4, 24), 4);
  EXPECT_EQ(found.segments, 4);
  ASSERT_EQ(found.layers.size(), 2U);
  const LayerRouting& layer = found.layers[0];
  const double means[] = {1.6 / 4, 0.7 / 4, 0.6 / 4, 1.1 / 4};
  for (size_t e = 0; e < 4; ++e) EXPECT_NEAR(layer.mean_weights[e], means[e], kNear);
  // Above one half: 0.7 and 0.6 of the first sequence, 1 of the second. One half is not.
  EXPECT_NEAR(layer.active_share, 3.0 / 16, kNear);
  EXPECT_EQ(layer.active, (std::vector<bool>{true, true, false, true}));
  const auto part = [](double weight) { return -weight * std::log(weight); };
  const double entropy = part(0.7) + 3 * part(0.1) + part(0.4) + part(0.6) + 0 + 2 * part(0.5);
  EXPECT_NEAR(layer.entropy, entropy / 4, kNear);
  EXPECT_NEAR(layer.largest_weight, (0.7 + 0.6 + 1 + 0.5) / 4, kNear);
  EXPECT_NEAR(found.layers[1].entropy, std::log(4), kNear);
  EXPECT_EQ(found.layers[1].active_share, 0);

  EXPECT_EQ(dead_routers(found, 4), (std::vector<int64_t>{1}));
  EXPECT_EQ(dead_experts(found, 4), (std::vector<int64_t>{2}));
  const auto warnings = routing_warnings({5}, {2, 3});
  ASSERT_EQ(warnings.size(), 2U);
  EXPECT_NE(warnings[0].find("layers: 5 "), std::string::npos);
  EXPECT_NE(warnings[1].find(": 2, 3"), std::string::npos);
  EXPECT_TRUE(routing_warnings({}, {}).empty());
}

TEST(LoryRouting, MeansByLabel) {
  const auto means =
      weights_by_label(sums_of(kByHand, 2, 4, 24), 4, 0, std::vector<uint16_t>{2, 0}, 3);
  ASSERT_EQ(means.size(), 3U);
  EXPECT_TRUE(means[1].empty());
  const double first[] = {0.55, 0.35, 0.05, 0.05}, second[] = {0.25, 0, 0.25, 0.5};
  for (size_t e = 0; e < 4; ++e) {
    EXPECT_NEAR(means[2][e], first[e], kNear);
    EXPECT_NEAR(means[0][e], second[e], kNear);
  }
}

TEST(LoryRouting, PaddingAndFirstSegmentsCountNothing) {
  const LoryRouting found = lory_routing(sums_of(kByHand, 2, 4, 16), 4);
  EXPECT_EQ(found.segments, 2);  // the third segments begin behind the last target
  EXPECT_NEAR(found.layers[0].mean_weights[3], 0.55, kNear);
  const LoryRouting none = lory_routing(sums_of(kByHand, 2, 4, 8), 4);
  EXPECT_EQ(none.segments, 0);
  EXPECT_TRUE(none.layers.empty());
  EXPECT_TRUE(dead_routers(none, 4).empty());
  EXPECT_TRUE(dead_experts(none, 4).empty());
}

// Of two experts none can have more than twice an even share: nothing follows from that.
TEST(LoryRouting, OfTwoExpertsNoneIsDead) {
  const auto sums = sums_of({three_segments({0.5F, 0.5F, 1, 0, 1, 0})}, 1, 2, 24);
  const LoryRouting found = lory_routing(sums, 2);
  EXPECT_EQ(found.layers[0].entropy, 0);
  EXPECT_TRUE(dead_experts(found, 2).empty());
  EXPECT_TRUE(dead_routers(found, 2).empty());
}

// Sets each layer's router [E, H] to `factors` [E] times one direction, and reads the routing of
// some rows.
LoryRouting with_routers(const std::vector<float>& factors) {
  ModelConfig config;
  config.vocab_size = 37;
  config.hidden_size = 16;
  config.num_layers = 3;
  config.merged_experts = std::ssize(factors);
  config.segment_tokens = 6;
  Transformer model(config, DeviceConfig(), 3);
  std::vector<float> weights = model.weights();
  const auto parameters = model.parameters();
  const float* base = parameters.at("model.embed_tokens.weight").data();
  for (const auto& [name, values] : parameters) {
    if (name.find("mlp.gate.") == std::string::npos) continue;
    float* router = weights.data() + (values.data() - base);
    for (size_t i = 0; i < values.size(); ++i) {
      router[i] = factors[i / 16] * (1 + static_cast<float>(i % 16 % 3));
    }
  }
  model.set_weights(weights);
  const RowSource rows{33, [](int64_t first, int64_t count, std::span<int64_t> tokens) {
                         for (int64_t i = 0; i < count * 33; ++i) {
                           const auto place = static_cast<uint64_t>(first * 33 + i);
                           tokens[static_cast<size_t>(i)] =
                               static_cast<int64_t>(derive_seed(7, "token", place) % 37);
                         }
                       }};
  std::vector<RowRouting> found;
  visit_routing(model, rows, 0, 20,
                [&](int64_t, const RowRouting& routing) { found.push_back(routing); });
  return lory_routing(sums_of(found, 3, config.merged_experts, 32), config.merged_experts);
}

TEST(LoryRouting, ARouterOfZerosIsDead) {
  const LoryRouting found = with_routers({0, 0, 0, 0});
  EXPECT_EQ(found.segments, 20 * 5);
  for (const LayerRouting& layer : found.layers) {
    for (const double weight : layer.mean_weights) EXPECT_EQ(weight, 0.25);
    EXPECT_NEAR(layer.entropy, std::log(4), kNear);
    EXPECT_EQ(layer.largest_weight, 0.25);
  }
  EXPECT_EQ(dead_routers(found, 4), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(dead_experts(found, 4), (std::vector<int64_t>{0, 1, 2, 3}));
}

// Whatever the sign of the direction's product, expert 0 or 2 has all the weight.
TEST(LoryRouting, ARouterOfHugeRowsChoosesOneExpert) {
  const LoryRouting found = with_routers({1e6F, 0, -1e6F});
  for (const LayerRouting& layer : found.layers) {
    EXPECT_NEAR(layer.entropy, 0, 1e-3);
    EXPECT_NEAR(layer.largest_weight, 1, 1e-3);
    EXPECT_NEAR(layer.active_share, 1.0 / 3, 1e-3);
    EXPECT_NEAR(layer.mean_weights[0] + layer.mean_weights[2], 1, 1e-3);
  }
  EXPECT_TRUE(dead_routers(found, 3).empty());
  EXPECT_EQ(dead_experts(found, 3), (std::vector<int64_t>{1}));
}

}  // namespace
}  // namespace smalltalk
