#include "data/pack_documents.hpp"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "smalltalk/core/system/random.hpp"

namespace smalltalk {
namespace {

using Order = std::vector<std::pair<int64_t, int64_t>>;  // document, padding

Order packed(const std::vector<int64_t>& lengths, int64_t seq_length) {
  Order order;
  for (const PackedDocument& document : pack_documents(lengths, seq_length)) {
    order.emplace_back(document.document, document.padding);
  }
  return order;
}

// By hand, for sequences of 10: the 23 leave 7 free, which takes the 6 and then the 1; 9 has
// nothing left to share with but padding; 5 and 5 fill one; at last 4.
TEST(PackDocuments, TheLongestBeginsAndTheLongestThatFitsFollows) {
  EXPECT_EQ(packed({5, 9, 6, 23, 1, 5, 4}, 10),
            (Order{{3, 0}, {2, 0}, {4, 0}, {1, 1}, {0, 0}, {5, 0}, {6, 6}}));
  EXPECT_EQ(packed({10, 20}, 10), (Order{{1, 0}, {0, 0}}));
  EXPECT_EQ(packed({3}, 10), (Order{{0, 7}}));
  EXPECT_EQ(packed({}, 10), Order{});
}

TEST(PackDocuments, NothingThatFitsIsCutAndNothingIsLost) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const auto draw = [seed](const char* what, uint64_t i, uint64_t below) {
      return static_cast<int64_t>(derive_seed(seed, what, i) % below);
    };
    const int64_t seq_length = 1 + draw("length", 0, 40);
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < draw("count", 0, 60); ++i) {
      lengths.push_back(1 + draw("document", static_cast<uint64_t>(i), 90));
    }
    std::set<int64_t> seen;
    int64_t at = 0;
    for (const auto& [document, padding] : packed(lengths, seq_length)) {
      EXPECT_TRUE(seen.insert(document).second);
      const int64_t length = lengths[static_cast<size_t>(document)];
      const int64_t free = (seq_length - at % seq_length) % seq_length;
      EXPECT_TRUE(free == 0 || length <= free);  // begins a sequence, or fits into one
      at += length;
      EXPECT_LT(padding, seq_length);
      if (padding > 0) {  // to the end of the sequence, as no other would have fitted
        EXPECT_EQ((at + padding) % seq_length, 0);
        for (size_t other = 0; other < lengths.size(); ++other) {
          EXPECT_TRUE(seen.contains(static_cast<int64_t>(other)) || lengths[other] > padding);
        }
      }
      at += padding;
    }
    EXPECT_EQ(seen.size(), lengths.size());
    EXPECT_EQ(at % seq_length, 0);
  }
}

}  // namespace
}  // namespace smalltalk
