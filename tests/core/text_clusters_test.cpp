#include "smalltalk/core/assignment/text_clusters.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <eigen3/Eigen/SVD>
#include <set>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/assignment/optimal_assignment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/random.hpp"

namespace smalltalk {
namespace {

using Texts = std::vector<std::vector<int64_t>>;

TextClusters cluster(const Texts& texts, const TextClusterOptions& options) {
  const auto read = [&](uint64_t sequence, std::span<int64_t> tokens) {
    std::copy(texts.at(sequence).begin(), texts.at(sequence).end(), tokens.begin());
  };
  return cluster_texts(read, std::ssize(texts), std::ssize(texts.at(0)), options);
}

TextClusterOptions options_for(int64_t vocab_size, int64_t num_clusters) {
  TextClusterOptions options;
  options.vocab_size = vocab_size;
  options.num_clusters = num_clusters;
  options.seed = 3;
  return options;
}

// Text i is of topic i mod `topics`: two of three tokens are among 20 of its own, the others are
// of all topics.
Texts planted(int64_t count, int64_t topics, int64_t length) {
  Texts texts;
  for (int64_t i = 0; i < count; ++i) {
    std::vector<int64_t>& text = texts.emplace_back();
    for (int64_t s = 0; s < length; ++s) {
      const uint64_t bits =
          derive_seed(1, "planted", static_cast<uint64_t>(i), static_cast<uint64_t>(s));
      const auto token = static_cast<int64_t>(bits / 3 % 20);
      text.push_back(bits % 3 == 0 ? token : 20 * (1 + i % topics) + token);
    }
  }
  return texts;
}

// TF-IDF as sklearn documents it, over dense counts.
Eigen::MatrixXd dense_tfidf(const Texts& texts, int64_t vocab_size) {
  Eigen::MatrixXd counts = Eigen::MatrixXd::Zero(std::ssize(texts), vocab_size);
  for (size_t i = 0; i < texts.size(); ++i) {
    for (const int64_t token : texts[i]) ++counts(static_cast<int64_t>(i), token);
  }
  for (int64_t v = 0; v < vocab_size; ++v) {
    const auto with = static_cast<double>((counts.col(v).array() > 0).count());
    counts.col(v) *= std::log((1 + static_cast<double>(texts.size())) / (1 + with)) + 1;
  }
  return counts.rowwise().normalized();
}

Eigen::MatrixXd projection_of(const TextClusters& clusters) {
  using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<const RowMajor>(clusters.projection.data(), clusters.vocab_size(),
                                    clusters.dimensions())
      .cast<double>();
}

TEST(TextClusters, WeighsTermsByTheFormula) {
  const Texts texts = {{0, 1, 1, 4}, {1, 2, 2, 2}, {1, 0, 0, 0}};
  const TextClusters clusters = cluster(texts, options_for(5, 2));
  const Eigen::MatrixXd expected = dense_tfidf(texts, 5);
  for (size_t i = 0; i < texts.size(); ++i) {
    const TextVector text = tfidf(texts[i], clusters.idf);
    Eigen::VectorXd row = Eigen::VectorXd::Zero(5);
    for (size_t k = 0; k < text.terms.size(); ++k) row(text.terms[k]) = text.weights[k];
    EXPECT_LT((row - expected.row(static_cast<int64_t>(i)).transpose()).norm(), 1e-6);
  }
  EXPECT_NEAR(clusters.idf[3], std::log(4.0) + 1, 1e-6);  // nobody has it
}

TEST(TextClusters, ProjectsOnTheLeadingSingularVectors) {
  constexpr int64_t kVocabulary = 100;
  const Texts texts = planted(200, 4, 30);
  TextClusterOptions options = options_for(kVocabulary, 2);
  options.dimensions = 4;  // the topics; there is a gap behind them
  const TextClusters clusters = cluster(texts, options);
  ASSERT_EQ(clusters.dimensions(), 4);
  const Eigen::MatrixXd found = projection_of(clusters);
  const Eigen::MatrixXd weights = dense_tfidf(texts, kVocabulary);
  const Eigen::JacobiSVD<Eigen::MatrixXd> svd(weights, Eigen::ComputeThinV);
  const Eigen::MatrixXd exact = svd.matrixV().leftCols(4);
  EXPECT_LT((found * found.transpose() - exact * exact.transpose()).norm(), 1e-4);
  for (int64_t j = 0; j < 4; ++j) {
    EXPECT_NEAR((weights * found.col(j)).norm(), svd.singularValues()(j), 1e-5) << j;
  }
  const std::vector<float> embedding = embed(clusters, texts[7]);
  const Eigen::VectorXd expected = (weights.row(7) * found).normalized();
  for (int64_t j = 0; j < 4; ++j) {
    EXPECT_NEAR(embedding[static_cast<size_t>(j)], expected(j), 1e-5);
  }
}

TEST(TextClusters, FindsPlantedTopics) {
  constexpr int64_t kTopics = 5;
  const Texts texts = planted(1000, kTopics, 30);
  const TextClusters clusters = cluster(texts, options_for(120, kTopics));
  ScoreMatrix scores(std::ssize(texts), kTopics);
  for (int64_t i = 0; i < scores.num_sequences(); ++i) {
    rate_clusters(clusters, texts[static_cast<size_t>(i)], scores.row(i));
    for (const float cosine : scores.row(i)) ASSERT_LE(std::abs(cosine), 1 + 1e-5);
  }
  std::set<uint16_t> used;
  const Assignment nearest = argmax_assignment(scores);
  for (size_t topic = 0; topic < kTopics; ++topic) used.insert(nearest[topic]);
  EXPECT_EQ(used.size(), kTopics);
  for (size_t i = 0; i < nearest.size(); ++i) EXPECT_EQ(nearest[i], nearest[i % kTopics]) << i;
  EXPECT_EQ(balanced_assignment(scores), nearest);
}

// Three quarters of the texts are of one topic, so equal shares are not what the nearest centres
// give: each centre is the mean of its equal share.
TEST(TextClusters, CentresAreMeansOfEqualShares) {
  const Texts both = planted(800, 2, 30);
  Texts texts;
  for (size_t i = 0; i < both.size(); ++i) {
    if (i % 2 == 0 || i % 6 == 1) texts.push_back(both[i]);
  }
  TextClusterOptions options = options_for(60, 2);
  options.iterations = 100;
  const TextClusters clusters = cluster(texts, options);
  ScoreMatrix scores(std::ssize(texts), 2);
  for (size_t i = 0; i < texts.size(); ++i) {
    rate_clusters(clusters, texts[i], scores.row(static_cast<int64_t>(i)));
  }
  // Cosine of each centre with the mean of the texts that an assignment gives it.
  const auto agreement = [&](const Assignment& assignment) {
    const int64_t d = clusters.dimensions();
    Eigen::MatrixXf sums = Eigen::MatrixXf::Zero(d, 2);
    for (size_t i = 0; i < texts.size(); ++i) {
      const std::vector<float> text = embed(clusters, texts[i]);
      sums.col(assignment[i]) += Eigen::Map<const Eigen::VectorXf>(text.data(), d);
    }
    const Eigen::Map<const Eigen::MatrixXf> centres(clusters.centres.data(), d, 2);
    return (sums.colwise().normalized().cwiseProduct(centres)).colwise().sum().minCoeff();
  };
  const auto capacities = balanced_capacities(std::ssize(texts), 2);
  EXPECT_GT(
      agreement(
          optimal_assignment(local_scores(scores), capacities, 1e-3, 1, HostCollectives{}).expert),
      0.9999F);
  EXPECT_LT(agreement(argmax_assignment(scores)), 0.99F);
}

TEST(TextClusters, AreAFunctionOfTheSeed) {
  const Texts texts = planted(300, 3, 20);
  TextClusterOptions options = options_for(80, 3);
  options.max_sample = 200;
  const TextClusters one = cluster(texts, options);
  options.threads = 4;
  const TextClusters same = cluster(texts, options);
  EXPECT_EQ(one.idf, same.idf);
  EXPECT_EQ(one.projection, same.projection);
  EXPECT_EQ(one.centres, same.centres);
  options.seed = 4;  // another sample
  EXPECT_NE(cluster(texts, options).idf, one.idf);
}

TEST(TextClusters, ManagesWithoutVariety) {
  // Two texts, again and again: rank 2, and three clusters of them.
  Texts texts;
  for (int i = 0; i < 50; ++i) {
    texts.push_back({0, 1, 2});
    texts.push_back({3, 4, 4});
  }
  const TextClusters clusters = cluster(texts, options_for(40, 3));
  EXPECT_EQ(clusters.dimensions(), 2);
  EXPECT_EQ(clusters.num_clusters(), 3);
  for (const float value : clusters.centres) EXPECT_TRUE(std::isfinite(value));

  // Texts of which nothing is known, and no text at all, are as near to all centres.
  for (const std::vector<int64_t>& unknown : Texts{{30, 31, 39}, {}}) {
    std::array<float, 3> cosines{1, 1, 1};
    rate_clusters(clusters, unknown, cosines);
    EXPECT_THAT(cosines, testing::Each(0.0F));
  }

  const TextClusters only = cluster(texts, options_for(40, 1));
  std::array<float, 1> cosine{};
  rate_clusters(only, texts[0], cosine);
  EXPECT_GT(cosine[0], 0.5F);
}

TEST(TextClusters, RefusesWhatCannotBe) {
  EXPECT_THROW(cluster({{0, 1}, {1, 2}}, options_for(3, 3)), Error);
  EXPECT_THROW(cluster({{0, 1}, {1, 3}}, options_for(3, 1)), Error);
  EXPECT_THROW(cluster({{0, 1}, {1, -1}}, options_for(3, 1)), Error);
  const TextClusters clusters = cluster({{0, 1}, {1, 2}}, options_for(3, 1));
  EXPECT_THROW(embed(clusters, std::vector<int64_t>{3}), Error);
}

}  // namespace
}  // namespace smalltalk
