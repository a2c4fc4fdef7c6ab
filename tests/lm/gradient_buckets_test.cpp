// Buckets cover the buffer once, divide into equal pieces, and become ready as a backward pass
// goes.
#include "lm/train/gradient_buckets.hpp"

#include <gtest/gtest.h>

#include "fixtures.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kBucketFloats = 300;

struct BucketCase {
  bool tied;
  int ranks;
};

class GradientBucketsTest : public testing::TestWithParam<BucketCase> {
 protected:
  ParameterLayout layout =
      parameter_layout(tiny_model(FeedForward::swiglu, GetParam().tied).resolved());
  int ranks = GetParam().ranks;
};
INSTANTIATE_TEST_SUITE_P(Cases, GradientBucketsTest,
                         testing::Values(BucketCase{true, 2}, BucketCase{true, 3},
                                         BucketCase{true, 7}, BucketCase{false, 2},
                                         BucketCase{false, 3}, BucketCase{false, 64}));

TEST_P(GradientBucketsTest, CoverTheBufferOnce) {
  const GradientBuckets buckets(layout, ranks, kBucketFloats);
  EXPECT_GE(buckets.padded(), layout.total);
  EXPECT_LT(buckets.padded(), layout.total + 4 * ranks);
  std::vector<int> owners(buckets.padded(), 0);
  int64_t shard = 0;
  for (const GradientBucket& bucket : buckets.all()) {
    EXPECT_EQ(bucket.shard_begin, shard);
    EXPECT_GT(bucket.piece, 0);
    EXPECT_LE(bucket.piece * ranks, std::max<int64_t>(kBucketFloats, 4 * ranks));
    shard += bucket.piece;
    for (int64_t i = 0; i < bucket.piece * ranks; ++i) ++owners.at(bucket.begin + i);
  }
  EXPECT_EQ(shard * ranks, buckets.padded());
  EXPECT_EQ(std::count(owners.begin(), owners.end(), 1), buckets.padded());
}

TEST_P(GradientBucketsTest, BecomeReadyInOrderAsTheBackwardPassGoes) {
  GradientBuckets buckets(layout, ranks, kBucketFloats);
  std::vector<std::pair<int64_t, int64_t>> announced;
  size_t sent = 0;
  const auto announce = [&](int64_t begin, int64_t end) {
    buckets.ready(begin, end);
    announced.emplace_back(begin, end);
    const size_t before = sent;
    for (; buckets.next_is_ready(); ++sent) {
      const GradientBucket& bucket = buckets.pop();
      EXPECT_EQ(&bucket, &buckets.all()[sent]);
      // All of it has been announced.
      int64_t final = 0;
      const int64_t past = std::min(bucket.begin + bucket.piece * ranks, layout.total);
      for (const auto& [a, b] : announced) {
        final += std::max<int64_t>(0, std::min(b, past) - std::max(a, bucket.begin));
      }
      EXPECT_EQ(final, past - bucket.begin);
    }
    return sent - before;
  };
  // Twice: the second step begins afresh.
  for (int step = 0; step < 2; ++step) {
    size_t early = 0;
    if (!GetParam().tied) early += announce(layout.head, layout.blocks);
    for (size_t i = layout.layers.size(); i-- > 0;) {
      const bool top = i + 1 == layout.layers.size();
      early += announce(layout.layers[i].qkv, top ? layout.decay_size : layout.layers[i + 1].qkv);
    }
    // Most of what lies in the blocks is on its way before the norms and the embedding are final.
    EXPECT_GT(early, 0U);
    announce(layout.decay_size, layout.total);
    EXPECT_FALSE(buckets.all_popped());
    announce(0, GetParam().tied ? layout.blocks : layout.head);
    EXPECT_TRUE(buckets.all_popped());
    buckets.reset();
    announced.clear();
    sent = 0;
  }
}

TEST_P(GradientBucketsTest, AnEngineThatSaysAllAtOnceIsHeard) {
  GradientBuckets buckets(layout, ranks, kBucketFloats);
  EXPECT_FALSE(buckets.next_is_ready());
  buckets.ready(0, layout.total);
  while (buckets.next_is_ready()) buckets.pop();
  EXPECT_TRUE(buckets.all_popped());
}

TEST(GradientBucketsOfOneTest, AreOneBucketWithoutPadding) {
  const ParameterLayout layout = parameter_layout(tiny_model().resolved());
  const GradientBuckets buckets(layout, 1, kBucketFloats);
  EXPECT_EQ(buckets.padded(), layout.total);
  ASSERT_EQ(buckets.all().size(), 1U);
  EXPECT_EQ(buckets.all()[0].piece, layout.total);
}

}  // namespace
}  // namespace smalltalk
