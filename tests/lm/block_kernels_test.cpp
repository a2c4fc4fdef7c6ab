// The CUDA kernels of a block, run on the CPU: each against float64, with every number around its
// outputs watched, and all of them inside the engine.
#include "block_emulation.hpp"
// The kernels need what stands above.
#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <random>

#include "guarded.hpp"
#include "lm/torch/block_ops.hpp"
#include "lm/torch/torch_engine.hpp"
#include "models_fixture.hpp"

namespace smalltalk {
namespace {

template <class T>
void fill(Guarded<T>& values, uint64_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < values.size(); ++i) values[i] = value_of<T>(normal(generator));
}

// Of the largest, as what is summed up may cancel.
template <class T>
void expect_close(Guarded<T>& found, const std::vector<double>& expected, double tolerance,
                  const char* what) {
  ASSERT_EQ(found.size(), expected.size());
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_NEAR(float_of(found[i]), expected[i], tolerance * largest) << what << " " << i;
  }
}

template <class T>
constexpr double kRounding = sizeof(T) == sizeof(float) ? 2e-6 : 4e-3;
template <class T>
constexpr NumberType kType = sizeof(T) == sizeof(float) ? NumberType::float32
                                                        : NumberType::bfloat16;

// For both types and both orders of threads.
template <class F>
void for_each_kind(F f) {
  for (const bool reverse : {false, true}) {
    SCOPED_TRACE(reverse);
    reverse_threads = reverse;
    f(float());
    f(uint16_t());
  }
  reverse_threads = false;
}

template <class T>
void check_norm(int64_t models, int64_t tokens, int64_t hidden, bool with_delta) {
  SCOPED_TRACE(testing::Message() << models << " " << tokens << " " << hidden << with_delta);
  const int64_t all = models * tokens, stride = hidden + (hidden % 4 == 0 ? 8 : 3);
  const auto size = static_cast<size_t>(all * hidden);
  const float eps = 1e-5F;
  Guarded<float> x(size), sum(with_delta ? size : 0), weight(static_cast<size_t>(models * stride)),
      rstd(static_cast<size_t>(all)), d_x(size), d_weight(weight.size(), 1.0F),
      parts(static_cast<size_t>(models * kNormParts * hidden));
  Guarded<T> delta(size), out(size), d_out(size), d_rounded(size);
  fill(x, 1);
  fill(delta, 2);
  fill(weight, 3);
  fill(d_out, 4);
  fill(d_x, 5);
  std::vector<double> r_sum(size), r_out(size), r_d_x(size), r_d_weight(d_weight.size(), 1.0);
  for (int64_t row = 0; row < all; ++row) {
    double square = 0, dot = 0;
    const auto at = [&](int64_t column) { return static_cast<size_t>(row * hidden + column); };
    const auto of_weight = [&](int64_t column) {
      return static_cast<size_t>(row / tokens * stride + column);
    };
    for (int64_t c = 0; c < hidden; ++c) {
      r_sum[at(c)] = static_cast<double>(x[at(c)]) + (with_delta ? float_of(delta[at(c)]) : 0.0);
      square += r_sum[at(c)] * r_sum[at(c)];
      dot += r_sum[at(c)] * float_of(d_out[at(c)]) * weight[of_weight(c)];
    }
    const double n = static_cast<double>(hidden), scale = 1 / std::sqrt(square / n + eps);
    for (int64_t c = 0; c < hidden; ++c) {
      r_out[at(c)] = r_sum[at(c)] * scale * weight[of_weight(c)];
      const double gradient = float_of(d_out[at(c)]);
      r_d_x[at(c)] = d_x[at(c)] + scale * (gradient * weight[of_weight(c)] -
                                           scale * scale * dot / n * r_sum[at(c)]);
      r_d_weight[of_weight(c)] += gradient * r_sum[at(c)] * scale;
    }
  }
  const NormShape shape{kType<T>, models, all, hidden, stride};
  kBlockKernels.add_norm(shape, x.data(), with_delta ? delta.data() : nullptr, weight.data(), eps,
                         with_delta ? sum.data() : nullptr, out.data(), rstd.data(), nullptr);
  if (with_delta) expect_close(sum, r_sum, 1e-6, "sum");
  expect_close(out, r_out, kRounding<T>, "out");
  kBlockKernels.norm_backward(shape, d_out.data(), with_delta ? sum.data() : x.data(),
                              weight.data(), rstd.data(), d_x.data(), d_rounded.data(),
                              parts.data(), d_weight.data(), nullptr);
  expect_close(d_x, r_d_x, 3e-6, "d_x");
  expect_close(d_rounded, r_d_x, kRounding<T>, "d_rounded");
  expect_close(d_weight, r_d_weight, 3e-6, "d_weight");
}

TEST(BlockKernels, NormAgreesWithFloat64) {
  for_each_kind([](auto type) {
    using T = decltype(type);
    check_norm<T>(1, 5, 8, true);
    check_norm<T>(2, 9, 96, false);
    check_norm<T>(1, 3, 97, true);  // no pack of it can be moved at once
    check_norm<T>(3, 17, 130, true);
    check_norm<T>(1, 2, 516, true);
    check_norm<T>(2, 11, 1024, true);
    check_norm<T>(1, 3, 1300, true);  // a row is a block's
    check_norm<T>(1, 2, 4096, false);
    check_norm<T>(2, 1, 8190, true);
  });
  reverse_threads = false;
  check_norm<float>(1, 8 * kNormParts + 40, 8, true);  // more rows than the parts' first ones
}

template <class T>
void check_rotary(int64_t sequences, int64_t length, int64_t heads, int64_t kv, int64_t dim) {
  SCOPED_TRACE(testing::Message() << length << " " << heads << " " << kv << " " << dim);
  const int64_t tokens = sequences * length, all = heads + 2 * kv;
  Guarded<T> qkv(static_cast<size_t>(tokens * all * dim)), turned(qkv.size()), back(qkv.size());
  Guarded<float> cosine(static_cast<size_t>(length * dim)), sine(cosine.size());
  fill(qkv, 1);
  std::copy_n(qkv.data(), qkv.size(), turned.data());
  for (int64_t position = 0; position < length; ++position) {
    for (int64_t i = 0; i < dim; ++i) {
      const double angle =
          static_cast<double>(position) *
          std::pow(10000.0, -2.0 * static_cast<double>(i % (dim / 2)) / static_cast<double>(dim));
      const auto at = static_cast<size_t>(position * dim + i);
      cosine[at] = static_cast<float>(std::cos(angle));
      sine[at] = static_cast<float>(std::sin(angle));
    }
  }
  const RotaryShape shape{kType<T>, tokens, length, heads, kv, dim};
  kBlockKernels.rotate(shape, turned.data(), cosine.data(), sine.data(), nullptr);
  std::vector<double> expected;
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t head = 0; head < all; ++head) {
      for (int64_t i = 0; i < dim; ++i) {
        const auto at = [&](int64_t column) {
          return static_cast<size_t>((token * all + head) * dim + column);
        };
        const auto angle = static_cast<size_t>(token % length * dim + i);
        const double partner =
            i < dim / 2 ? -float_of(qkv[at(i + dim / 2)]) : float_of(qkv[at(i - dim / 2)]);
        const double own = float_of(qkv[at(i)]);
        expected.push_back(head < heads + kv ? own * cosine[angle] + partner * sine[angle] : own);
      }
    }
  }
  expect_close(turned, expected, kRounding<T>, "turned");
  // The transpose of a rotation undoes it. Queries as [sequences, heads, length, dim], the others
  // as they lie in qkv.
  Guarded<T> query(static_cast<size_t>(tokens * heads * dim));
  for (int64_t token = 0; token < tokens; ++token) {
    for (int64_t i = 0; i < heads * dim; ++i) {
      const int64_t head = i / dim;
      query[static_cast<size_t>(((token / length * heads + head) * length + token % length) * dim +
                                i % dim)] = turned[static_cast<size_t>(token * all * dim + i)];
    }
  }
  const HeadsView of_query{query.data(), heads * length * dim, length * dim, dim};
  const auto in_place = [&](int64_t head) {
    return HeadsView{turned.data() + head * dim, length * all * dim, dim, all * dim};
  };
  kBlockKernels.rotate_backward(shape, of_query, in_place(heads), in_place(heads + kv),
                                cosine.data(), sine.data(), back.data(), nullptr);
  std::vector<double> original;
  for (size_t i = 0; i < qkv.size(); ++i) original.push_back(float_of(qkv[i]));
  expect_close(back, original, 2 * kRounding<T>, "back");
}

TEST(BlockKernels, HeadsAreTurnedAndTurnedBack) {
  for_each_kind([](auto type) {
    using T = decltype(type);
    check_rotary<T>(2, 5, 2, 2, 8);
    check_rotary<T>(3, 7, 4, 1, 64);
    check_rotary<T>(1, 130, 3, 3, 4);  // halves of a pack
    check_rotary<T>(2, 3, 2, 1, 12);
    check_rotary<T>(1, 9, 1, 1, 128);
  });
}

template <class T>
void check_activation(int64_t tokens, int64_t width, bool gated) {
  SCOPED_TRACE(testing::Message() << tokens << " " << width << gated);
  const int64_t columns = gated ? 2 * width : width;
  Guarded<T> up(static_cast<size_t>(tokens * columns)), d_up(up.size()),
      out(static_cast<size_t>(tokens * width)), d_out(out.size());
  fill(up, 1);
  fill(d_out, 2);
  std::vector<double> r_out(out.size()), r_d_up(up.size());
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < width; ++i) {
      const auto at = static_cast<size_t>(t * width + i);
      const auto first = static_cast<size_t>(t * columns + i), second = first + width;
      const double d = float_of(d_out[at]), x = float_of(up[first]);
      if (gated) {
        const double u = float_of(up[second]), s = 1 / (1 + std::exp(-x));
        r_out[at] = x * s * u;
        r_d_up[first] = d * u * (s + x * s * (1 - s));
        r_d_up[second] = d * x * s;
      } else {
        r_out[at] = x > 0 ? x * x : 0;
        r_d_up[first] = x > 0 ? 2 * x * d : 0;
      }
    }
  }
  const ActivationShape shape{kType<T>, tokens, width, gated};
  kBlockKernels.activate(shape, up.data(), out.data(), nullptr);
  kBlockKernels.activate_backward(shape, up.data(), d_out.data(), d_up.data(), nullptr);
  expect_close(out, r_out, kRounding<T>, "out");
  expect_close(d_up, r_d_up, kRounding<T>, "d_up");
}

TEST(BlockKernels, ActivationsAgreeWithFloat64) {
  for_each_kind([](auto type) {
    for (const bool gated : {false, true}) {
      check_activation<decltype(type)>(3, 8, gated);
      check_activation<decltype(type)>(5, 13, gated);
      check_activation<decltype(type)>(2, 1028, gated);
    }
  });
}

template <class T>
void check_softmax(int64_t tokens, int64_t vocab, float spread) {
  SCOPED_TRACE(testing::Message() << tokens << " " << vocab);
  Guarded<float> logits(static_cast<size_t>(tokens * vocab)),
      log_probs(static_cast<size_t>(tokens)), scores_only(log_probs.size());
  Guarded<uint8_t> greedy(log_probs.size()), counted(log_probs.size(), 1);
  Guarded<T> d_logits(logits.size());
  fill(logits, 1);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] *= spread;
  const std::vector<int64_t> targets = random_tokens(tokens, vocab, 3);
  // The likeliest of the first row, and one that does not count.
  std::vector<int64_t> chosen = targets;
  chosen[0] = std::max_element(logits.data(), logits.data() + vocab) - logits.data();
  counted[static_cast<size_t>(tokens - 1)] = 0;
  const float scale = 0.25F;
  std::vector<double> r_log_probs, r_d_logits;
  for (int64_t t = 0; t < tokens; ++t) {
    double maximum = -INFINITY, sum = 0;
    for (int64_t v = 0; v < vocab; ++v) {
      maximum = std::max<double>(maximum, logits[static_cast<size_t>(t * vocab + v)]);
    }
    for (int64_t v = 0; v < vocab; ++v) {
      sum += std::exp(logits[static_cast<size_t>(t * vocab + v)] - maximum);
    }
    const bool counts = counted[static_cast<size_t>(t)] != 0;
    const int64_t target = chosen[static_cast<size_t>(t)];
    const double logit = logits[static_cast<size_t>(t * vocab + target)];
    r_log_probs.push_back(counts ? logit - maximum - std::log(sum) : 0);
    for (int64_t v = 0; v < vocab; ++v) {
      const double p = std::exp(logits[static_cast<size_t>(t * vocab + v)] - maximum) / sum;
      r_d_logits.push_back(counts ? scale * (p - (v == target ? 1 : 0)) : 0);
    }
  }
  const SoftmaxShape shape{kType<T>, tokens, vocab};
  kBlockKernels.softmax(shape, logits.data(), chosen.data(), nullptr, 0, scores_only.data(),
                        greedy.data(), nullptr, nullptr);
  kBlockKernels.softmax(shape, logits.data(), chosen.data(), counted.data(), scale,
                        log_probs.data(), greedy.data(), d_logits.data(), nullptr);
  expect_close(log_probs, r_log_probs, 1e-6, "log_probs");
  expect_close(d_logits, r_d_logits, 3 * kRounding<T>, "d_logits");
  for (int64_t t = 0; t < tokens; ++t) {
    const auto at = static_cast<size_t>(t);
    const float* row = logits.data() + t * vocab;
    EXPECT_EQ(greedy[at] != 0, row[chosen[at]] >= *std::max_element(row, row + vocab)) << t;
    if (t + 1 < tokens) {
      EXPECT_EQ(scores_only[at], log_probs[at]);
    }
  }
  EXPECT_EQ(greedy[0], 1);
  // In float32 the gradients may take the logits' place.
  if constexpr (sizeof(T) == sizeof(float)) {
    kBlockKernels.softmax(shape, logits.data(), chosen.data(), counted.data(), scale,
                          log_probs.data(), greedy.data(), logits.data(), nullptr);
    for (size_t i = 0; i < logits.size(); ++i) ASSERT_EQ(logits[i], d_logits[i]);
  }
}

TEST(BlockKernels, SoftmaxAgreesWithFloat64) {
  for_each_kind([](auto type) {
    using T = decltype(type);
    check_softmax<T>(3, 2, 1);
    check_softmax<T>(4, 300, 1);
    check_softmax<T>(2, 1023, 3);
    check_softmax<T>(3, 5000, 1);
    check_softmax<T>(3, 128, 100);  // logits of some hundred
  });
}

// A step of the engine by the kernels is what it is by LibTorch's operations.
TEST(BlockKernels, CarryAWholeStep) {
  constexpr int64_t kRows = 2, kRowTokens = 10;
  ModelConfig packed = tiny_model(FeedForward::relu2, true, 1);
  packed.document_mask = true;
  packed.document_end = 2;
  for (const ModelConfig& config :
       {tiny_model(FeedForward::swiglu, true), tiny_model(FeedForward::swiglu, false, 2), packed,
        merging(tiny_model(FeedForward::swiglu, true), 3, 4), merging(packed, 3, 2)}) {
    const int64_t count = config.merges_experts() ? 1 : 2;  // models
    for (const auto& [precision, tolerance] :
         {std::pair<std::string, double>("float32", 1e-5), {"bf16-mixed", 2e-2}}) {
      SCOPED_TRACE(precision);
      const auto tokens = random_tokens(count * kRows * kRowTokens, 37, 5);
      const auto shared = random_tokens(kRows * kRowTokens, 37, 6);
      std::vector<at::Tensor> gradients;
      std::vector<std::vector<double>> losses;
      std::vector<std::vector<float>> scores;
      for (const BlockKernels* kernels :
           {static_cast<const BlockKernels*>(nullptr), &kBlockKernels}) {
        Models models(config, count, precision);
        set_cpu_block_kernels(kernels);
        losses.push_back(models.step(tokens, kRows, kRowTokens, 0.01F));
        gradients.push_back(models.gradients.clone());
        scores.emplace_back(count * kRows * kRowTokens * 37);
        models.engine.logits(shared, kRows, kRowTokens, scores.back());
        set_cpu_block_kernels(nullptr);
      }
      const double norm = gradients[0].norm().item<double>();
      EXPECT_GT(norm, 0);
      EXPECT_LT((gradients[1] - gradients[0]).norm().item<double>(), tolerance * norm);
      EXPECT_FALSE(gradients[1].equal(gradients[0]));  // they were computed by something else
      for (size_t r = 0; r < losses[0].size(); ++r) {
        EXPECT_NEAR(losses[1][r], losses[0][r], 0.1 * tolerance * losses[0][r]);
      }
      for (size_t i = 0; i < scores[0].size(); ++i) {
        ASSERT_NEAR(scores[1][i], scores[0][i], 4 * tolerance);
      }
    }
  }
}

}  // namespace
}  // namespace smalltalk
