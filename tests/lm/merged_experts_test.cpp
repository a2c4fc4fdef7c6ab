// Experts that are merged for each segment: against a model in float64 whose gradients are
// autograd's, against a plain model, and by what a token may know of later ones.
#include "lm/cpu/merged_experts.hpp"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "fixtures.hpp"
#include "merging_reference.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/merge_experts.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/row_routing.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kRows = 3, kRowTokens = 24, kEnd = MergingReference::kEnd;

TEST(MergedExperts, GradientsAgreeWithAutogradInFloat64) {
  ModelConfig packed = merging(tiny_model(FeedForward::swiglu, true, 1), 3, 4);
  packed.document_end = kEnd;
  packed.document_mask = true;
  ModelConfig some_layers = merging(tiny_model(FeedForward::swiglu, true, 0), 6, 7);
  some_layers.merged_layers = "1";
  some_layers.routing = SegmentRouting::prefix;
  ModelConfig uniform = merging(tiny_model(FeedForward::relu2, true, 0), 7, 6);
  uniform.first_segment = FirstSegment::uniform;
  for (const ModelConfig& config :
       {merging(tiny_model(FeedForward::swiglu, true, 0), 4, 8),
        merging(tiny_model(FeedForward::relu2, false, 2), 5, 5),
        merging(tiny_model(FeedForward::swiglu, false, 0), 2, 100), packed, some_layers, uniform}) {
    SCOPED_TRACE(std::to_string(config.merged_experts));
    std::vector<int64_t> tokens = random_tokens(kRows * kRowTokens, 37, 5);
    for (const size_t end : {3, 9, 10, 11, 40, 60}) tokens[end] = kEnd;
    for (const int64_t threads : {1, 2}) {
      DeviceConfig device;
      device.threads = threads;
      Transformer model(config, device, 3);
      const MergingReference reference(model);
      double loss = 0;
      const auto gradients = loss_gradients(model, tokens, kRows, kRowTokens, &loss);
      at::Tensor expected = reference.loss(tokens, kRows, kRowTokens);
      expected.backward();
      EXPECT_NEAR(loss, expected.item<double>(), 1e-5);
      for (const auto& [name, values] : gradients) {
        // One segment alone has no router's gradient.
        const at::Tensor& weight = reference.weight(name);
        const at::Tensor flat = weight.grad().defined() ? weight.grad() : at::zeros_like(weight);
        const auto* truth = flat.const_data_ptr<double>();
        const double scale = flat.abs().max().item<double>();
        for (size_t i = 0; i < values.size(); ++i) {
          ASSERT_NEAR(values[i], truth[i], 2e-5 * scale + 1e-7) << name << " " << i;
        }
      }
    }
  }
}

TEST(MergedExperts, SegmentsBeginWithDocuments) {
  const auto cut = [](int64_t rows, int64_t length, int64_t segment, const int32_t* starts) {
    std::vector<std::array<int64_t, 3>> found;
    ModelConfig config;
    config.segment_tokens = segment;
    for (const Segment& s : cut_into_segments(config, rows, length, starts)) {
      found.push_back({s.begin, s.size, s.source});
    }
    return found;
  };
  using Found = std::vector<std::array<int64_t, 3>>;
  EXPECT_EQ(cut(2, 5, 2, nullptr),
            (Found{{0, 2, 0}, {2, 2, 0}, {4, 1, 1}, {5, 2, 3}, {7, 2, 3}, {9, 1, 4}}));
  EXPECT_EQ(cut(1, 3, 8, nullptr), (Found{{0, 3, 0}}));
  const std::vector<int32_t> starts = {0, 0, 0, 3, 3, 5, 6, 6};
  EXPECT_EQ(cut(1, 8, 2, starts.data()),
            (Found{{0, 2, 0}, {2, 1, 0}, {3, 2, 2}, {5, 1, 3}, {6, 2, 4}}));
}

std::vector<float> scores_of(const Transformer& model, const std::vector<int64_t>& tokens,
                             const Merging& merging = {}) {
  const RowSource rows{std::ssize(tokens), [&](int64_t, int64_t, std::span<int64_t> out) {
                         std::ranges::copy(tokens, out.begin());
                       }};
  std::vector<float> scores;
  const auto keep = [&](const LogProbs& piece) {
    scores.assign(piece.values.begin(), piece.values.end());
  };
  visit_log_probs(model, rows, 0, 1, keep, merging);
  return scores;
}

TEST(MergedExperts, ScoresAreThoseOfEachWayToMerge) {
  ModelConfig prefix = merging(tiny_model(FeedForward::swiglu, true, 0), 4, 6);
  prefix.routing = SegmentRouting::prefix;
  ModelConfig packed = merging(tiny_model(FeedForward::relu2, true, 1), 3, 4);
  packed.document_end = kEnd;
  packed.document_mask = true;
  std::vector<int64_t> tokens = random_tokens(32, 37, 7);
  std::ranges::replace(tokens, kEnd, 3);  // two in a row would be padding
  tokens[17] = tokens[25] = kEnd;
  const at::Tensor row = at::from_blob(tokens.data(), {32}, at::kLong);
  for (const ModelConfig& config :
       {merging(tiny_model(FeedForward::swiglu, true, 0), 4, 6), prefix, packed}) {
    const Transformer model(config, DeviceConfig(), 3);
    const MergingReference reference(model);
    std::vector<std::vector<float>> found;
    for (const Merging& merging : {Merging{}, Merging{.leaky = true}, Merging{.prompt_tokens = 10},
                                   Merging{.prompt_tokens = 40}}) {
      found.push_back(scores_of(model, tokens, merging));
      const at::Tensor truth = reference.losses(row, merging);
      for (int64_t t = 0; t < 31; ++t) {
        ASSERT_NEAR(-found.back()[t], truth[t].item<double>(), 1e-5) << t;
      }
    }
    EXPECT_NE(found[0], found[1]);
    EXPECT_NE(found[1], found[2]);
    EXPECT_NE(found[2], found[3]);
  }
}

TEST(MergedExperts, RoutingIsWhatScoresAreMergedBy) {
  ModelConfig some_layers = merging(tiny_model(FeedForward::swiglu, true, 0), 6, 7);
  some_layers.merged_layers = "1";
  some_layers.routing = SegmentRouting::prefix;
  ModelConfig packed = merging(tiny_model(FeedForward::relu2, true, 1), 3, 4);
  packed.document_end = kEnd;
  packed.document_mask = true;
  constexpr int64_t kAll = 50;  // rows: more than are scored at once
  for (const ModelConfig& config :
       {merging(tiny_model(FeedForward::swiglu, true, 0), 4, 6), some_layers, packed,
        merging(tiny_model(FeedForward::relu2, false, 2), 5, 100)}) {
    const int64_t experts = config.merged_experts;
    SCOPED_TRACE(std::to_string(experts));
    const Transformer model(config, DeviceConfig(), 3);
    const MergingReference reference(model);
    const RowSource rows = random_rows(24, 37);
    std::vector<std::vector<double>> sums;
    double routed = 0;
    int64_t seen = 0;
    visit_routing(model, rows, 0, kAll, [&](int64_t row, const RowRouting& found) {
      ASSERT_EQ(row, seen++);
      std::vector<int64_t> tokens(24);
      rows.read(row, 1, tokens);
      // Of all tokens but the last, as where they are scored.
      reference.logits(at::from_blob(tokens.data(), {23}, at::kLong), {});
      const std::vector<at::Tensor>& truth = reference.routing();
      const auto segments = std::ssize(found.segments);
      const auto layers = std::ssize(truth) / segments;
      ASSERT_EQ(std::ssize(found.weights), layers * segments * experts);
      sums.resize(static_cast<size_t>(layers), std::vector<double>(experts));
      int64_t start = 0;
      for (int64_t s = 0; s < segments; ++s) {
        const auto& segment = found.segments[s];
        const bool ends = config.document_mask && tokens[segment.begin] == kEnd;
        EXPECT_EQ(segment.first, s == 0 || ends);
        if (segment.first) start = segment.begin;
        EXPECT_EQ((segment.begin - start) % config.segment_tokens, 0);
        if (!segment.first) ++routed;
        for (int64_t layer = 0; layer < layers; ++layer) {
          for (int64_t e = 0; e < experts; ++e) {
            const double weight = found.of(layer, s, experts)[e];
            EXPECT_NEAR(weight, truth[layer * segments + s][e].item<double>(), 1e-5);
            if (segment.first) {
              EXPECT_EQ(weight, 1.0F / static_cast<float>(experts));
            } else {
              sums[layer][e] += weight;
            }
          }
        }
      }
      if (!config.document_mask) {
        EXPECT_EQ(segments, (23 + config.segment_tokens - 1) / config.segment_tokens);
      }
    });
    EXPECT_EQ(seen, kAll);
    const auto means = mean_routing_weights(model, rows, 0, kAll);
    ASSERT_EQ(means.size(), sums.size());
    for (size_t layer = 0; layer < means.size(); ++layer) {
      for (int64_t e = 0; e < experts; ++e) {
        const double mean = routed > 0 ? sums[layer][e] / routed : 1 / static_cast<double>(experts);
        EXPECT_NEAR(means[layer][e], mean, 1e-9);
      }
    }
    // A row's bits are its own.
    visit_routing(model, rows, 31, 32, [&](int64_t, const RowRouting& alone) {
      visit_routing(model, rows, 0, kAll, [&](int64_t row, const RowRouting& among) {
        if (row == 31) {
          EXPECT_EQ(alone.weights, among.weights);
        }
      });
    });
  }
  const Transformer plain(tiny_model(), DeviceConfig(), 3);
  EXPECT_THROW(mean_routing_weights(plain, random_rows(24, 37), 0, 2), Error);
}

// An expert's parameters by the names that they have in a plain model, and all others by their own.
std::map<std::string, std::vector<float>> as_if_plain(const Transformer& model, int64_t expert) {
  std::map<std::string, std::vector<float>> result;
  const std::string place = "experts." + std::to_string(expert) + ".";
  for (const auto& [name, values] : model.parameters()) {
    const size_t at = name.find("experts.");
    const std::string plain = name_in_dense(name);
    if (plain.empty() || (at != std::string::npos && !name.substr(at).starts_with(place))) continue;
    result[plain].assign(values.begin(), values.end());
  }
  return result;
}

TEST(MergedExperts, MergedForGoodByOneExpertAloneAModelIsThatExpert) {
  for (const FeedForward feed_forward : {FeedForward::swiglu, FeedForward::relu2}) {
    ModelConfig config = merging(tiny_model(feed_forward, false, 2), 3, 5);
    config.merged_layers = "1";
    const Transformer model(config, DeviceConfig(), 11);
    const Transformer plain = merge_experts(model, {{0, 0, 1}});
    EXPECT_FALSE(plain.config().merges_experts());
    const auto expected = as_if_plain(model, 2);
    const auto found = plain.parameters();
    EXPECT_EQ(found.size(), expected.size());
    for (const auto& [name, values] : found) {
      ASSERT_TRUE(expected.contains(name)) << name;
      EXPECT_TRUE(std::ranges::equal(values, expected.at(name))) << name;
    }
  }
  const Transformer plain(tiny_model(), DeviceConfig(), 3);
  EXPECT_THROW(merge_experts(plain, {}), Error);
}

// Equal experts give one model by whatever weights. By any others, what is merged for good is the
// average of the experts' matrices.
TEST(MergedExperts, MergedForGoodEqualExpertsAreTheModelThatMergesThemAnew) {
  Transformer model(merging(tiny_model(FeedForward::swiglu, true, 0), 4, 5), DeviceConfig(), 12);
  const auto average = [&](const std::vector<double>& weights, const std::string& name) {
    double sum = 0;
    for (size_t e = 0; e < weights.size(); ++e) {
      sum += weights[e] * as_if_plain(model, static_cast<int64_t>(e)).at(name)[7];
    }
    return sum;
  };
  const std::vector<double> first = {0.5, 0.1, 0.3, 0.1}, second = {0, 0.25, 0, 0.75};
  const Transformer apart = merge_experts(model, {first, second});
  const std::string end = ".mlp.down_proj.weight";
  for (const auto& [name, weights] :
       {std::pair("model.layers.0" + end, first), std::pair("model.layers.1" + end, second)}) {
    EXPECT_NEAR(apart.parameters().at(name)[7], average(weights, name), 1e-7);
  }

  std::vector<float> values = model.weights();
  const ParameterLayout layout = parameter_layout(model.config());
  for (const LayerOffsets& layer : layout.layers) {
    for (int64_t e = 1; e < 4; ++e) {
      std::copy_n(values.begin() + layer.gate_up, layout.expert_stride,
                  values.begin() + layer.gate_up + e * layout.expert_stride);
    }
  }
  model.set_weights(values);
  const RowSource rows = random_rows(kRowTokens, 37);
  const Transformer plain = merge_experts(model, mean_routing_weights(model, rows, 0, 4));
  const auto tokens = random_tokens(2 * kRowTokens, 37, 4);
  const std::vector<float> expected = model.logits(tokens, 2, kRowTokens);
  const std::vector<float> found = plain.logits(tokens, 2, kRowTokens);
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-4);
}

// Training lets a first segment's tokens know of later ones of the same segment, and of none behind
// it.
TEST(MergedExperts, TheFirstSegmentLeaksInTraining) {
  const Transformer model(merging(tiny_model(FeedForward::swiglu, true, 0), 4, 6), DeviceConfig(),
                          3);
  const std::vector<int64_t> tokens = random_tokens(32, 37, 7);
  std::vector<int64_t> other = tokens;
  other[5] = (other[5] + 1) % 37;
  const std::vector<float> before = scores_of(model, tokens, {.leaky = true});
  const std::vector<float> after = scores_of(model, other, {.leaky = true});
  EXPECT_NE(after[0], before[0]);
  other = tokens;
  other[6] = (other[6] + 1) % 37;
  const std::vector<float> behind = scores_of(model, other, {.leaky = true});
  for (int64_t t = 0; t < 5; ++t) EXPECT_EQ(behind[t], before[t]);
}

// Where it is scored, no token's probability depends on later ones, in the first segment either;
// and it does depend on the segment before.
TEST(MergedExperts, ScoresAreCausal) {
  const Transformer model(merging(tiny_model(FeedForward::swiglu, true, 0), 4, 6), DeviceConfig(),
                          3);
  const std::vector<int64_t> tokens = random_tokens(32, 37, 7);
  const std::vector<float> before = scores_of(model, tokens);
  for (int64_t changed = 0; changed < 32; ++changed) {
    std::vector<int64_t> other = tokens;
    other[changed] = (other[changed] + 1) % 37;
    const std::vector<float> after = scores_of(model, other);
    for (int64_t t = 0; t + 1 < changed; ++t) ASSERT_EQ(after[t], before[t]) << changed;
    if (changed > 0) {
      EXPECT_NE(after[changed - 1], before[changed - 1]);
    }
  }
}

// Experts that are alike are one, whatever the router says.
TEST(MergedExperts, AlikeTheyAreAPlainModel) {
  ModelConfig config = merging(tiny_model(FeedForward::swiglu, true, 0), 4, 6);
  Transformer merged(config, DeviceConfig(), 3);
  config.merged_experts = 0;
  Transformer plain(config, DeviceConfig(), 3);
  std::vector<float> weights = merged.weights(), plain_weights = plain.weights();
  const auto copy = [&](const std::string& from, const std::string& to) {
    const auto values = merged.parameters().at(from);
    const auto target = plain.parameters().at(to);
    std::ranges::copy(
        values, plain_weights.begin() +
                    (target.data() - plain.parameters().at("model.embed_tokens.weight").data()));
  };
  for (const auto& [name, values] : merged.parameters()) {
    const size_t at = name.find("mlp.experts.");
    if (name.find("mlp.gate.") != std::string::npos) continue;
    if (at == std::string::npos) {
      copy(name, name);
      continue;
    }
    const size_t dot = name.find('.', at + 12);
    const std::string rest = name.substr(dot + 1), prefix = name.substr(0, at + 12);
    const auto first = merged.parameters().at(prefix + "0." + rest);
    std::ranges::copy(
        first, weights.begin() +
                   (values.data() - merged.parameters().at("model.embed_tokens.weight").data()));
    copy(prefix + "0." + rest, name.substr(0, at) + "mlp." + rest);
  }
  merged.set_weights(weights);
  plain.set_weights(plain_weights);
  const std::vector<int64_t> tokens = random_tokens(32, 37, 7);
  const auto a = scores_of(merged, tokens), b = scores_of(plain, tokens);
  for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 2e-5) << i;
}

TEST(MergedExperts, TrainResumeAndLoadAsOtherModels) {
  const TemporaryFolder folder;
  const ModelConfig config = merging(tiny_model(FeedForward::relu2, true, 0), 4, 6);
  TrainConfig train;
  train.steps = 40;
  train.batch_size = 8;
  train.lr = 1e-2;
  train.save_interval = 15;
  const auto trained = [&](const std::string& name, std::vector<int64_t> lasts,
                           Recompute recompute) {
    train.recompute = recompute;
    double loss = 0;
    for (const int64_t last : lasts) {
      Transformer model(config, DeviceConfig(), 1);
      TrainOptions options;
      options.name = "test";
      options.folder = folder.path() / name;
      options.show_progress = false;
      Trainer trainer(model, train, options);
      trainer.resume();
      loss = trainer.run(random_rows(25, 5), last).last_loss;
      if (last == 40) trainer.save_model(folder.path() / name, {});
    }
    EXPECT_LT(loss, std::log(5.0) + 0.2);
    return Transformer::load(folder.path() / name, DeviceConfig()).weights();
  };
  const auto whole = trained("whole", {40}, Recompute::none);
  EXPECT_EQ(trained("cut", {20, 40}, Recompute::none), whole);
  EXPECT_EQ(trained("selective", {40}, Recompute::selective), whole);
  EXPECT_EQ(trained("full", {40}, Recompute::full), whole);
  EXPECT_EQ(static_cast<int64_t>(whole.size()), parameter_count(config));
}

// Trains the plain model for `dense` steps and the merged one up to `last`, each from what is
// there.
std::map<std::string, std::vector<float>> train_from_dense(const std::filesystem::path& folder,
                                                           const ModelConfig& config, int64_t dense,
                                                           int64_t last) {
  TrainConfig train;
  train.steps = 40;
  train.batch_size = 8;
  train.lr = 1e-2;
  train.save_interval = 7;
  TrainOptions options;
  options.name = "test";
  options.folder = folder;
  options.show_progress = false;
  if (checkpoint_steps(folder).empty() || checkpoint_steps(folder)[0] < dense) {
    Transformer plain(config.dense(), DeviceConfig(), 1);
    Trainer trainer(plain, train, options);
    trainer.resume();
    trainer.run(random_rows(25, 5), std::min(dense, last));
    trainer.checkpoint();
    if (last < dense) return {};
  }
  Transformer model(config, DeviceConfig(), 1);
  options.dense_steps = dense;
  Trainer trainer(model, train, options);
  EXPECT_GE(trainer.resume(), dense);
  trainer.run(random_rows(25, 5), last);
  trainer.save(folder / "last.safetensors");
  std::map<std::string, std::vector<float>> tensors;
  for (const auto& [name, tensor] : read_safetensors(folder / "last.safetensors").tensors) {
    tensors[name] = tensor.values;
  }
  return tensors;
}

TEST(MergedExperts, BeginAsTheFeedForwardsOfADenseModel) {
  const TemporaryFolder folder;
  ModelConfig config = merging(tiny_model(FeedForward::swiglu, true, 0), 3, 6);
  config.merged_layers = "1";
  const auto merged = train_from_dense(folder.path() / "new", config, 13, 13);
  const auto dense = read_safetensors(weights_file(folder.path() / "new", 13)).tensors;
  const Transformer fresh(config, DeviceConfig(), 1);
  const auto random = fresh.parameters();
  for (const auto& [name, values] : merged) {
    if (name.find("mlp.gate.") != std::string::npos) {
      std::vector<float> begin(values.size(), 0);  // of moments
      if (random.contains(name)) std::ranges::copy(random.at(name), begin.begin());
      EXPECT_EQ(values, begin) << name;
      continue;
    }
    std::string there = name;
    for (const char* expert : {"experts.0.", "experts.1.", "experts.2."}) {
      const size_t at = there.find(expert);
      if (at != std::string::npos) there.erase(at, std::string(expert).size());
    }
    EXPECT_EQ(values, dense.at(there).values) << name;
  }
  // Stopped anywhere, it comes to the same.
  const auto whole = train_from_dense(folder.path() / "whole", config, 13, 40);
  for (const int64_t cut : {5, 13, 14, 30}) {
    const auto place = folder.path() / std::to_string(cut);
    train_from_dense(place, config, 13, cut);
    if (cut > 13) {
      // Without that of the stop, from the change-over or from one behind it.
      std::filesystem::remove(weights_file(place, cut));
    }
    EXPECT_EQ(train_from_dense(place, config, 13, 40), whole) << cut;
  }
  // From an earlier checkpoint of the plain model that model goes on.
  std::filesystem::resize_file(weights_file(folder.path() / "new", 13), 100);
  TrainConfig train;
  train.steps = 40;
  train.batch_size = 8;
  train.lr = 1e-2;
  TrainOptions options;
  options.folder = folder.path() / "new";
  options.dense_steps = 13;
  options.show_progress = false;
  Transformer model(config, DeviceConfig(), 1);
  Trainer trainer(model, train, options);
  EXPECT_EQ(trainer.resume(), 0);
}

// Experts that are alike get gradients in proportion to their weights, and their router none: a
// router of zeros then leaves them alike for ever, which is why it begins at random.
TEST(MergedExperts, ARouterOfZerosKeepsThemAlike) {
  const ModelConfig config = merging(tiny_model(FeedForward::swiglu, true, 0), 3, 6);
  const auto spread = [&](bool zero_router) {
    const TemporaryFolder folder;
    Transformer model(config, DeviceConfig(), 3);
    std::vector<float> weights = model.weights();
    const float* base = model.parameters().at("model.embed_tokens.weight").data();
    for (const auto& [name, values] : model.parameters()) {
      float* own = weights.data() + (values.data() - base);
      const size_t at = name.find("experts.");
      if (zero_router && name.find("mlp.gate.") != std::string::npos) {
        std::fill_n(own, values.size(), 0.0F);
      } else if (at != std::string::npos) {
        std::string first = name;
        std::ranges::copy(model.parameters().at(first.replace(at + 8, 1, "0")), own);
      }
    }
    model.set_weights(weights);
    TrainConfig train;
    train.steps = 20;
    train.batch_size = 8;
    TrainOptions options;
    options.show_progress = false;
    Trainer trainer(model, train, options);
    trainer.run(random_rows(25, 5), 20);
    const auto a = model.parameters().at("model.layers.0.mlp.experts.0.up_proj.weight");
    const auto b = model.parameters().at("model.layers.0.mlp.experts.1.up_proj.weight");
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
    }
    return largest;
  };
  EXPECT_LT(spread(true), 1e-6);
  EXPECT_GT(spread(false), 1e-4);
}

}  // namespace
}  // namespace smalltalk
