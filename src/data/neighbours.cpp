// FAISS, and what it needs to give the same bytes everywhere: products by Eigen in fixed blocks,
// where a BLAS would choose its own order of sums, and one OpenMP thread to each of ours.
#include "smalltalk/data/neighbours.hpp"

#define EIGEN_DONT_PARALLELIZE  // also on seeing OpenMP

#include <faiss/Clustering.h>
#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>
#include <fmt/format.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Core>
#include <numeric>
#include <tuple>
#include <vector>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kBlock = 256;          // queries of one product
constexpr int64_t kTile = 1024;          // vectors that they are multiplied with
constexpr int64_t kChunk = 64 * kBlock;  // queries between two lines of progress
constexpr int kTrainedWith = 50;         // vectors for each cell's centre
constexpr int kIterations = 10;          // of its k-means

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Rows = Eigen::Map<const RowMajor>;

int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }

struct Candidate {
  double similarity;
  int64_t id;
};
bool better(const Candidate& a, const Candidate& b) {
  return a.similarity > b.similarity || (a.similarity == b.similarity && a.id < b.id);
}

// The vectors with the largest products. What a query finds depends on the place that it has in its
// block, and on nothing else that is asked for.
class InnerProducts : public faiss::IndexFlatIP {
 public:
  InnerProducts(int64_t dimensions, int threads) : IndexFlatIP(dimensions), threads_(threads) {}

  void search(int64_t n, const float* queries, int64_t count, float* similarities, int64_t* ids,
              const faiss::SearchParameters* = nullptr) const override {
    parallel_for(blocks_of(n), threads_, [&](int64_t block) {
      stop_if_asked();
      const int64_t first = block * kBlock;
      search_block(Rows(queries + first * d, std::min(kBlock, n - first), d), count,
                   similarities + first * count, ids + first * count);
    });
  }

 private:
  void search_block(const Rows& queries, int64_t count, float* similarities, int64_t* ids) const {
    // Heaps with the worst on top. Ids ascend, so that of two that are alike the first one stays.
    std::vector<std::vector<Candidate>> best(static_cast<size_t>(queries.rows()));
    RowMajor products(queries.rows(), kTile);
    for (int64_t first = 0; first < ntotal; first += kTile) {
      const int64_t width = std::min<int64_t>(kTile, ntotal - first);
      products.leftCols(width).noalias() =
          queries * Rows(get_xb() + first * d, width, d).transpose();
      for (int64_t row = 0; row < queries.rows(); ++row) {
        auto& heap = best[static_cast<size_t>(row)];
        const float* similarity = &products(row, 0);
        for (int64_t i = 0; i < width; ++i) {
          if (std::ssize(heap) == count) {
            if (!(similarity[i] > heap.front().similarity)) continue;
            std::pop_heap(heap.begin(), heap.end(), better);
            heap.pop_back();
          }
          heap.push_back({similarity[i], first + i});
          std::push_heap(heap.begin(), heap.end(), better);
        }
      }
    }
    std::fill_n(ids, queries.rows() * count, -1);
    for (int64_t row = 0; row < queries.rows(); ++row) {
      auto& heap = best[static_cast<size_t>(row)];
      std::sort(heap.begin(), heap.end(), better);
      for (size_t i = 0; i < heap.size(); ++i) {
        similarities[row * count + static_cast<int64_t>(i)] =
            static_cast<float>(heap[i].similarity);
        ids[row * count + static_cast<int64_t>(i)] = heap[i].id;
      }
    }
  }

  int threads_;
};

// As long as it lives, FAISS computes on the calling thread alone.
class OneThread {
 public:
  OneThread() { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_ = omp_get_max_threads();
};

// A rank's share of a search among all vectors.
class Search {
 public:
  Search(std::span<const float> vectors, int64_t dimensions, const NeighbourOptions& options,
         const HostCollectives& ranks)
      : vectors_(vectors.data()),
        n_(std::ssize(vectors) / dimensions),
        d_(dimensions),
        count_(std::min(options.count + 1, n_)),  // with the vector itself
        options_(options),
        ranks_(ranks) {
    std::tie(first_, end_) = part_of_range(n_, ranks.rank, ranks.size, kBlock);
    found_.resize(static_cast<size_t>((end_ - first_) * count_));
  }

  // Of each vector of the share its candidates, [share, count + 1]; -1 where there are fewer.
  // Collective.
  const std::vector<int64_t>& candidates() {
    if (n_ < options_.exact_below) {
      run_together(ranks_, [&] { search_all(); });
    } else {
      search_cells();
    }
    return found_;
  }
  int64_t first() const { return first_; }
  int64_t end() const { return end_; }
  int64_t count() const { return count_; }

 private:
  // Calls chunk(first, end) for each piece of the share.
  template <typename F>
  void for_chunks(const char* label, F chunk) const {
    Progress progress(label, end_ - first_, "documents");
    for (int64_t i = first_; i < end_; i += kChunk) {
      const int64_t chunk_end = std::min(end_, i + kChunk);
      chunk(i, chunk_end);
      progress.update(chunk_end - first_);
    }
  }
  const float* vector(int64_t i) const { return vectors_ + i * d_; }

  void search_all() {
    InnerProducts all(d_, options_.threads);
    all.add(n_, vectors_);
    std::vector<float> similarities(static_cast<size_t>(kChunk * count_));
    for_chunks("neighbours", [&](int64_t from, int64_t to) {
      all.search(to - from, vector(from), count_, similarities.data(),
                 found_.data() + (from - first_) * count_);
    });
  }

  // The centres of the cells, found by rank 0.
  std::vector<float> find_centres(int64_t cells) const {
    std::vector<float> centres(static_cast<size_t>(cells * d_));
    run_together(ranks_, [&] {
      if (ranks_.rank != 0) return;
      log_info(fmt::format("finding {} cells of documents", cells));
      const OneThread alone;
      faiss::ClusteringParameters parameters;
      parameters.niter = kIterations;
      parameters.spherical = true;
      parameters.min_points_per_centroid = 1;
      parameters.max_points_per_centroid = kTrainedWith;
      parameters.seed = static_cast<int>(derive_seed(options_.seed, "cells") >> 34);
      faiss::Clustering clustering(static_cast<int>(d_), static_cast<int>(cells), parameters);
      InnerProducts found(d_, options_.threads);
      clustering.train(n_, vectors_, found);
      centres = clustering.centroids;
    });
    ranks_.broadcast(std::as_writable_bytes(std::span(centres)), 0);
    return centres;
  }

  void search_cells() {
    const auto cells = static_cast<int64_t>(4 * std::sqrt(static_cast<double>(n_)));
    const int64_t probed = std::min(options_.probed_cells, cells);
    InnerProducts centres(d_, options_.threads);
    centres.add(cells, find_centres(cells).data());

    // The nearest cells of each vector of the share; its own is the first.
    std::vector<int64_t> near(static_cast<size_t>((end_ - first_) * probed)), mine;
    std::vector<float> similarities(near.size());
    run_together(ranks_, [&] {
      for_chunks("cells", [&](int64_t from, int64_t to) {
        const int64_t at = (from - first_) * probed;
        centres.search(to - from, vector(from), probed, similarities.data() + at, near.data() + at);
      });
      for (size_t i = 0; i < near.size(); i += static_cast<size_t>(probed)) mine.push_back(near[i]);
    });
    const std::vector<int64_t> cell_of = gather_values<int64_t>(mine, ranks_);

    run_together(ranks_, [&] {
      const OneThread alone;
      faiss::IndexIVFFlat index(&centres, static_cast<size_t>(d_), static_cast<size_t>(cells),
                                faiss::METRIC_INNER_PRODUCT);
      index.add_core(n_, vectors_, nullptr, cell_of.data());
      index.nprobe = static_cast<size_t>(probed);
      for_chunks("neighbours", [&](int64_t from, int64_t to) {
        parallel_for(blocks_of(to - from), options_.threads, [&](int64_t block) {
          stop_if_asked();
          const OneThread own;
          faiss::IndexIVFStats stats;  // the global ones are not for many threads
          const int64_t begin = from + block * kBlock;
          const int64_t size = std::min(kBlock, to - begin);
          const int64_t at = begin - first_;
          std::vector<float> products(static_cast<size_t>(size * count_));
          index.search_preassigned(size, vector(begin), count_, near.data() + at * probed,
                                   similarities.data() + at * probed, products.data(),
                                   found_.data() + at * count_, false, nullptr, &stats);
        });
      });
    });
  }

  const float* vectors_;
  int64_t n_, d_, count_;
  int64_t first_ = 0, end_ = 0;  // the share
  const NeighbourOptions& options_;
  const HostCollectives& ranks_;
  std::vector<int64_t> found_;
};

}  // namespace

Neighbours nearest_neighbours(std::span<const float> vectors, int64_t dimensions,
                              const NeighbourOptions& options, const HostCollectives& ranks) {
  ST_CHECK(dimensions > 0 && std::ssize(vectors) % dimensions == 0 && options.count > 0 &&
           options.probed_cells > 0);
  const int64_t n = std::ssize(vectors) / dimensions;
  if (n >= kNoNeighbour) throw Error(fmt::format("{} documents are too many to compare", n));
  if (n == 0) return {{}, options.count};
  Search search(vectors, dimensions, options, ranks);
  const std::vector<int64_t>& candidates = search.candidates();
  // Ranked by products that are added up in one order, whoever is compared.
  std::vector<uint32_t> mine(static_cast<size_t>((search.end() - search.first()) * options.count),
                             kNoNeighbour);
  run_together(ranks, [&] {
    parallel_for(search.end() - search.first(), options.threads, [&](int64_t i) {
      const float* own = vectors.data() + (search.first() + i) * dimensions;
      std::vector<Candidate> ranked;
      for (int64_t c = i * search.count(); c < (i + 1) * search.count(); ++c) {
        const int64_t id = candidates[static_cast<size_t>(c)];
        if (id < 0 || id == search.first() + i) continue;
        const double similarity =
            std::inner_product(own, own + dimensions, vectors.data() + id * dimensions, 0.0);
        if (similarity > 0) ranked.push_back({similarity, id});
      }
      std::sort(ranked.begin(), ranked.end(), better);
      const size_t kept = std::min(ranked.size(), static_cast<size_t>(options.count));
      for (size_t k = 0; k < kept; ++k) {
        mine[static_cast<size_t>(i * options.count) + k] = static_cast<uint32_t>(ranked[k].id);
      }
    });
  });
  return {values_of<uint32_t>(ranks.gather_bytes(std::as_bytes(std::span(mine)), 0)),
          options.count};
}

}  // namespace smalltalk
