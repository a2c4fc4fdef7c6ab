// Decoding with a cache against whole forward passes, of one model or of two that should be equal.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "fixtures.hpp"
#include "smalltalk/lm/torch/decoder.hpp"

namespace smalltalk {

// A row of each of these lengths; the second ends early, and its place goes to another. Logits may
// differ by a share of the largest.
inline void expect_decoded_as_whole(const Transformer& decoded, const Transformer& whole,
                                    double tolerance, MergeBy merging = MergeBy::prompt,
                                    const std::vector<int64_t>& lengths = {1, 17, 5}) {
  const int64_t vocab = decoded.config().vocab_size;
  const auto expect_close = [&](std::span<const float> found, const std::vector<int64_t>& tokens) {
    const std::vector<float> all = whole.logits(tokens, 1, std::ssize(tokens));
    const std::span<const float> last(all.end() - vocab, all.end());
    ASSERT_EQ(found.size(), last.size());
    const float largest = std::abs(*std::ranges::max_element(
        last, [](float a, float b) { return std::abs(a) < std::abs(b); }));
    for (size_t i = 0; i < last.size(); ++i) {
      ASSERT_NEAR(found[i], last[i], tolerance * largest) << "logit " << i;
    }
  };
  const int64_t begun = std::ssize(lengths), places = begun + 1;  // one stays free
  Decoder decoder(decoded, places, 40 + std::ranges::max(lengths), merging);
  std::vector<std::vector<int64_t>> rows(places);
  for (int64_t row = 0; row < begun; ++row) {
    rows[row] = random_tokens(lengths[row], vocab, 1 + static_cast<uint64_t>(row));
    expect_close(decoder.begin(row, rows[row]), rows[row]);
  }
  for (int64_t step = 0; step < 20; ++step) {
    if (step == 7) {
      decoder.end(1);
      rows[1].clear();
    }
    if (step == 9) {
      rows[1] = random_tokens(3, vocab, 50);
      expect_close(decoder.begin(1, rows[1]), rows[1]);
    }
    const std::vector<int64_t> next =
        random_tokens(places, vocab, 100 + static_cast<uint64_t>(step));
    const std::vector<float> logits = decoder.step(next);
    for (int64_t row = 0; row < places; ++row) {
      if (rows[row].empty()) continue;
      rows[row].push_back(next[row]);
      EXPECT_EQ(decoder.size(row), std::ssize(rows[row]));
      SCOPED_TRACE("row " + std::to_string(row) + ", step " + std::to_string(step));
      expect_close(std::span(logits).subspan(row * vocab, vocab), rows[row]);
    }
  }
}

}  // namespace smalltalk
