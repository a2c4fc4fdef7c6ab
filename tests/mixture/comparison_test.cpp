// Rows of a comparison from cells written by hand, against numbers worked out on paper.
#include "smalltalk/mixture/evaluation/comparison.hpp"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "mixture/evaluation/comparison_text.hpp"
#include "mixture/evaluation/rows.hpp"
#include "small_mixture.hpp"

namespace smalltalk {
namespace {

constexpr double kError = 1e-6;

class ComparedRows : public ::testing::Test {
 protected:
  void SetUp() override {
    experiment_.baselines.tfidf_shards = true;
    units_ = train_units(experiment_, small::kTrainSequences);
    options_.prefixes = {2, 3};
    options_.steps = {1};
    sources_.text = {{}, 5, {"unknown", "prose", "code", "news"}, {2, 1, 1, 1, 3}, {4, 4, 4, 4, 4}};
    sources_.text.info.content_hash = "text";
    sources_.text.info.num_tokens = 21;  // 20 of them targets
    sources_.text.targets = {4, 4, 4, 4, 4};
    sources_.text.info.text_bytes = 63;
    sources_.validation = {{}, 3, {"unknown", "code", "prose"}, {2, 1, 2}, {4, 4, 4}};
    sources_.documents = {0, 1, 1, 2, 2};
    sources_.cell = [](const EvalCell& cell) {
      if (cell.step > 0) return small::likelihoods(small::everywhere(3, 5));
      const auto& cells = cell.split == "test" ? small::cells() : small::validation_cells();
      return small::likelihoods(cells.at(cell.unit));
    };
    sources_.nearest_cluster = [](int64_t prefix) {
      return Assignment(5, prefix == 3 ? uint16_t{1} : uint16_t{0});
    };
    sources_.cluster_flops = [](int64_t prefix) { return 10.0 * static_cast<double>(prefix); };
    sources_.by_ngrams = [](int64_t prefix) {
      return Assignment{0, 0, 1, prefix == 3 ? uint16_t{1} : uint16_t{0}, 0};
    };
    sources_.ngram_flops = [](int64_t prefix) { return 4.0 * static_cast<double>(prefix); };
  }
  RunRows find() const { return find_rows(experiment_, units_, options_, sources_); }

  Experiment experiment_ = small::experiment();
  std::vector<TrainUnit> units_;
  CompareOptions options_;
  RowSources sources_;
};

struct Expected {
  const char* model;
  const char* rule;
  int64_t prefix;
  int64_t step;
  double bits;  // of all 20 targets
  double flops;
};

// Sums of the five sequences under the expert that the rule gives them.
TEST_F(ComparedRows, EachRuleByHand) {
  const RunRows found = find();
  const std::vector<Expected> expected = {
      {"dense", "", 0, 0, 4 + 8 + 12 + 8 + 12, 616},
      {"random_shards", "in turn", 0, 0, 8 + 12 + 8 + 12 + 8, 616},
      {"tfidf_kmeans", "TF-IDF", 2, 0, 5 * 4, 616 + 20},
      {"tfidf_kmeans", "TF-IDF", 3, 0, 5 * 8, 616 + 30},
      // Experts 0 0 1 0 0 by two tokens, 0 0 1 1 0 by three; two routers read the prefix.
      {"mixture", "routers", 2, 0, 4 + 8 + 6 + 12 + 6, 616 + 2 * 244},
      {"mixture", "routers", 3, 0, 4 + 8 + 6 + 8 + 6, 616 + 2 * 390},
      // 0 0 1 1 0 (of the second sequence both have the same first target), then 0 1 1 1 0.
      {"mixture", "experts as routers", 2, 0, 4 + 8 + 6 + 8 + 6, 616 + 2 * 276},
      {"mixture", "experts as routers", 3, 0, 4 + 6 + 6 + 8 + 6, 616 + 2 * 438},
      // As the routers choose.
      {"mixture", "n-grams", 2, 0, 4 + 8 + 6 + 12 + 6, 616 + 8},
      {"mixture", "n-grams", 3, 0, 4 + 8 + 6 + 8 + 6, 616 + 12},
      // In the validation text expert 0 is best on code (4 bits to 8), 1 on prose (12 to 20) and on
      // all of it (20 to 24), which counts for news: 0 1 1 1 1.
      {"mixture", "domain label", 0, 0, 4 + 6 + 6 + 8 + 6, 616},
      {"mixture", "in turn", 0, 0, 4 + 6 + 12 + 8 + 6, 616},
      {"mixture", "best in hindsight", 4, 0, 4 + 6 + 6 + 8 + 6, 2 * 616},
      // The numbers of these are in another test.
      {"mixture", "ensemble by posterior", 3, 0, NAN, 2 * 616 + 2 * 390},
      {"mixture", "ensemble of equals", 0, 0, NAN, 2 * 616},
      {"dense", "", 0, 1, 60, 616},
      {"mixture", "routers", 3, 1, 60, 616 + 2 * 390},
      {"random_shards", "in turn", 0, 1, 60, 616},
      {"tfidf_kmeans", "TF-IDF", 3, 1, 60, 616 + 30}};
  ASSERT_EQ(found.rows.size(), expected.size());
  for (size_t r = 0; r < expected.size(); ++r) {
    const ComparedRow& row = found.rows[r];
    const Expected& wanted = expected[r];
    SCOPED_TRACE(fmt::format("{} {} {}", wanted.model, wanted.rule, wanted.prefix));
    EXPECT_EQ(row.kind->name, wanted.model);
    EXPECT_EQ(row.rule, wanted.rule);
    EXPECT_EQ(row.prefix, wanted.prefix);
    EXPECT_EQ(row.step, wanted.step);
    EXPECT_EQ(row.flops_per_sequence, wanted.flops);
    if (std::isnan(wanted.bits)) continue;
    EXPECT_NEAR(row.nats_per_token, wanted.bits / 20 * std::log(2), kError);
    EXPECT_NEAR(row.perplexity, std::exp2(wanted.bits / 20), kError);
    EXPECT_NEAR(row.bits_per_byte, wanted.bits / 60, kError);  // 20 of 21 tokens: 60 bytes
  }
  EXPECT_EQ(found.documents, sources_.documents);
  EXPECT_EQ(found.seq_length, 4);
  EXPECT_EQ(found.tokens, "text");
  // The mixture, by three tokens, has 32 bits where the dense model has 44.
  const Interval difference =
      difference_of(found.log_likelihoods[5], found.log_likelihoods[0], found, 10, 1);
  EXPECT_NEAR(difference.mean, (32 - 44) / 20.0 * std::log(2), kError);
}

TEST_F(ComparedRows, WithoutTrainingTokensNothingIsLearnedOfThem) {
  const size_t all = find().rows.size();
  sources_.by_ngrams = nullptr;
  const RunRows found = find();
  EXPECT_EQ(found.rows.size(), all - 2);
  for (const ComparedRow& row : found.rows) EXPECT_NE(row.rule, kByNgrams);
}

// One sequence of two targets. The prefix of two tokens has 1 bit under router 0 and 9 under
// router 1: likelihoods of 256 to 1. At T = 8 their eighth roots weigh, 2 to 1.
//   expert 0 gives the targets 1/2 and 1/4, expert 1 1/8 and 1/2
//   T = 8:  (2/3 x 1/2 + 1/3 x 1/8) (2/3 x 1/4 + 1/3 x 1/2) = 3/8 x 1/3 = 1/8
//   T = 1:  (256/2 + 1/8) / 257 x (256/4 + 1/2) / 257 = 128.125 x 64.5 / 257^2
//   equals: (1/2 + 1/8) / 2 x (1/4 + 1/2) / 2 = 5/16 x 3/8
TEST_F(ComparedRows, EnsemblesMixByTemperature) {
  experiment_.data.seq_length = 2;
  experiment_.mixture.prefix_tokens = 2;
  experiment_.baselines = {.dense = false, .random_shards = false};
  units_ = train_units(experiment_, small::kTrainSequences);
  options_.prefixes = {2};
  options_.steps = {};
  options_.temperatures = {8, 1};
  sources_.text = {{}, 1, {"prose"}, {0}, {2}};
  sources_.validation = sources_.text;
  sources_.documents = {0};
  sources_.by_ngrams = nullptr;
  sources_.cell = [](const EvalCell& cell) {
    const std::map<std::string, small::Bits> cells = {{"experts/0", {{1, 2}}},
                                                      {"experts/1", {{3, 1}}},
                                                      {"routers/0", {{1, 5}}},
                                                      {"routers/1", {{9, 0}}}};
    return small::likelihoods(cells.at(cell.unit));
  };
  const RunRows found = find();
  std::vector<double> temperatures, probabilities;
  for (size_t r = 0; r < found.rows.size(); ++r) {
    if (!found.rows[r].rule.starts_with("ensemble")) continue;
    EXPECT_EQ(found.rows[r].experts, 2);
    temperatures.push_back(found.rows[r].temperature);
    probabilities.push_back(std::exp(found.log_likelihoods[r][0]));
  }
  EXPECT_EQ(temperatures, (std::vector<double>{8, 1, 0}));
  ASSERT_EQ(probabilities.size(), 3U);
  EXPECT_NEAR(probabilities[0], 1.0 / 8, kError);
  EXPECT_NEAR(probabilities[1], 128.125 * 64.5 / (257 * 257), kError);
  EXPECT_NEAR(probabilities[2], 15.0 / 128, kError);
}

// Documents of 4, 8 and 9 tokens. Sequences begin at 0, 4, 8, 12 and 16: two of them exactly where
// a document ends, and so belong to the next.
TEST(ComparisonText, AMarkdownTableHasOneLineBelowItsHead) {
  EXPECT_EQ(markdown_table({{"model", "perplexity"}, {"dense", "3.5"}, {"mixture", "3.25"}}),
            "| model | perplexity |\n"
            "|---|---|\n"
            "| dense | 3.5 |\n"
            "| mixture | 3.25 |\n");
}

TEST(MeasuredText, ASequenceBelongsToTheDocumentOfItsFirstToken) {
  const std::vector<uint64_t> ends = {4, 12, 21};
  EXPECT_EQ(sequence_documents(ends, 5, 4), (std::vector<uint64_t>{0, 1, 1, 2, 2}));
  // Packed, the last token of a document lies before the next one's sequence.
  EXPECT_EQ(sequence_documents(std::vector<uint64_t>{5, 13, 21}, 5, 4, true),
            (std::vector<uint64_t>{0, 1, 1, 2, 2}));
}

}  // namespace
}  // namespace smalltalk
