// Small models and token batches that the tests of lm share.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

inline ModelConfig tiny_model(FeedForward feed_forward = FeedForward::swiglu, bool tied = true,
                              int64_t kv_heads = 0) {
  ModelConfig config;
  config.vocab_size = 37;
  config.hidden_size = 16;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = kv_heads;
  config.intermediate_size = 24;
  config.feed_forward = feed_forward;
  config.tie_embeddings = tied;
  config.init_std = config.embedding_std = 0.2;  // large: every part of the model matters
  return config;
}

inline ModelConfig merging(ModelConfig model, int64_t experts, int64_t segment_tokens) {
  model.merged_experts = experts;
  model.segment_tokens = segment_tokens;
  return model;
}

inline std::vector<int64_t> random_tokens(int64_t count, int64_t vocab_size, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<int64_t> tokens(static_cast<size_t>(count));
  for (int64_t& token : tokens) {
    token = static_cast<int64_t>(generator() % static_cast<uint64_t>(vocab_size));
  }
  return tokens;
}

inline std::vector<float> random_floats(int64_t size, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(size));
  for (float& value : values) value = normal(generator);
  return values;
}

// Rows that are functions of their index, as a sampler gives them.
inline RowSource random_rows(int64_t row_tokens, int64_t vocab_size) {
  return {row_tokens, [=](int64_t first, int64_t count, std::span<int64_t> tokens) {
            for (int64_t row = 0; row < count; ++row) {
              const auto line =
                  random_tokens(row_tokens, vocab_size,
                                derive_seed(7, "test rows", static_cast<uint64_t>(first + row)));
              std::copy(line.begin(), line.end(), tokens.begin() + row * row_tokens);
            }
          }};
}

}  // namespace smalltalk
