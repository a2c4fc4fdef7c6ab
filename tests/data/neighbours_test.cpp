#include "smalltalk/data/neighbours.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "smalltalk/core/system/random.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kDimensions = 10;
constexpr int64_t kTopics = 12;

// Of length 1, each near the direction of its topic, i mod kTopics; every 50th repeats the one
// before.
std::vector<float> vectors_of(int64_t n) {
  const auto part = [](const char* what, int64_t a, int64_t b) {
    return unit_interval(derive_seed(5, what, static_cast<uint64_t>(a), static_cast<uint64_t>(b))) -
           0.5;
  };
  std::vector<float> vectors;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t own = i % 50 == 49 ? i - 1 : i;
    std::vector<double> one;
    for (int64_t j = 0; j < kDimensions; ++j) {
      one.push_back(2 * part("topic", own % kTopics, j) + part("own", own, j));
    }
    const double length = std::sqrt(std::inner_product(one.begin(), one.end(), one.begin(), 0.0));
    for (const double value : one) vectors.push_back(static_cast<float>(value / length));
  }
  return vectors;
}

double product(std::span<const float> vectors, int64_t a, int64_t b) {
  const float* first = vectors.data() + a * kDimensions;
  return std::inner_product(first, first + kDimensions, vectors.data() + b * kDimensions, 0.0);
}

std::vector<uint32_t> reference(std::span<const float> vectors, int64_t count) {
  const int64_t n = std::ssize(vectors) / kDimensions;
  std::vector<uint32_t> neighbours;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<std::pair<double, int64_t>> others;
    for (int64_t j = 0; j < n; ++j) {
      if (j != i && product(vectors, i, j) > 0) others.emplace_back(-product(vectors, i, j), j);
    }
    std::sort(others.begin(), others.end());
    for (size_t k = 0; k < static_cast<size_t>(count); ++k) {
      neighbours.push_back(k < others.size() ? static_cast<uint32_t>(others[k].second)
                                             : kNoNeighbour);
    }
  }
  return neighbours;
}

NeighbourOptions options_for(int64_t count, int64_t exact_below = 1'000'000, int threads = 1) {
  NeighbourOptions options;
  options.count = count;
  options.exact_below = exact_below;
  options.probed_cells = 8;
  options.threads = threads;
  return options;
}

TEST(Neighbours, AreTheNearestOnes) {
  const std::vector<float> vectors = vectors_of(1300);  // several tiles and blocks
  EXPECT_EQ(nearest_neighbours(vectors, kDimensions, options_for(6), {}).ids,
            reference(vectors, 6));
}

TEST(Neighbours, AreFewerWhereThereAreNoMore) {
  std::vector<float> vectors = vectors_of(4);
  std::fill_n(vectors.begin() + kDimensions, kDimensions, 0.0F);  // is nobody's neighbour
  const Neighbours found = nearest_neighbours(vectors, kDimensions, options_for(5), {});
  EXPECT_EQ(found.ids, reference(vectors, 5));
  EXPECT_EQ(found.of(1)[0], kNoNeighbour);
  EXPECT_EQ(found.size(), 4);
}

TEST(Neighbours, OfCellsAreNearlyAllOfTheNearestOnes) {
  const std::vector<float> vectors = vectors_of(3000);
  const std::vector<uint32_t> exact = reference(vectors, 10);
  const Neighbours found = nearest_neighbours(vectors, kDimensions, options_for(10, 0), {});
  int64_t right = 0;
  for (int64_t i = 0; i < found.size(); ++i) {
    const std::span wanted = std::span(exact).subspan(static_cast<size_t>(i * 10), 10);
    const std::set<uint32_t> among(wanted.begin(), wanted.end());
    for (const uint32_t id : found.of(i)) right += among.contains(id) ? 1 : 0;
  }
  EXPECT_GT(static_cast<double>(right) / static_cast<double>(exact.size()), 0.8);
}

TEST(Neighbours, RanksAndThreadsDoNotShow) {
  const std::vector<float> vectors = vectors_of(2000);
  for (const int64_t exact_below : {0, 1'000'000}) {
    const auto alone =
        nearest_neighbours(vectors, kDimensions, options_for(7, exact_below), {}).ids;
    for (const int ranks : {1, 2, 3, 12}) {
      run_thread_ranks(ranks, [&](const HostCollectives& world) {
        const auto found =
            nearest_neighbours(vectors, kDimensions, options_for(7, exact_below, 3), world).ids;
        EXPECT_EQ(found, world.rank == 0 ? alone : std::vector<uint32_t>()) << ranks << " ranks";
      });
    }
  }
}

}  // namespace
}  // namespace smalltalk
