#include "smalltalk/core/assignment/text_clusters.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <eigen3/Eigen/Eigenvalues>
#include <eigen3/Eigen/QR>

#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

template <typename T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Points = RowMajor<float>;

constexpr int64_t kOversampling = 10;
constexpr int kPowerIterations = 5;
constexpr int64_t kSlab = 16;             // columns that a thread works on
constexpr double kRankTolerance = 1e-12;  // of squared singular values, relative to the largest
constexpr float kNothing = 1e-6F;         // a shorter vector has no direction
constexpr double kEpsilon = 1e-3;         // of the similarity that an assignment may miss

// How often each term occurs.
TextVector count_terms(std::span<const int64_t> tokens, int64_t vocab_size) {
  std::vector<uint32_t> sorted;
  for (const int64_t token : tokens) {
    if (token < 0 || token >= vocab_size) {
      throw Error(fmt::format("token {} in a text of a vocabulary of {}", token, vocab_size));
    }
    sorted.push_back(static_cast<uint32_t>(token));
  }
  std::sort(sorted.begin(), sorted.end());
  TextVector counts;
  for (const uint32_t term : sorted) {
    if (counts.terms.empty() || counts.terms.back() != term) {
      counts.terms.push_back(term);
      counts.weights.push_back(0);
    }
    ++counts.weights.back();
  }
  return counts;
}

void weigh(TextVector& counts, std::span<const float> idf) {
  double squares = 0;
  for (size_t k = 0; k < counts.terms.size(); ++k) {
    counts.weights[k] *= idf[counts.terms[k]];
    squares += static_cast<double>(counts.weights[k]) * counts.weights[k];
  }
  for (float& weight : counts.weights) weight /= static_cast<float>(std::sqrt(squares));
}

std::vector<float> inverse_frequencies(std::span<const TextVector> texts, int64_t vocab_size) {
  std::vector<int64_t> texts_with(static_cast<size_t>(vocab_size));
  for (const TextVector& text : texts) {
    for (const uint32_t term : text.terms) ++texts_with[term];
  }
  std::vector<float> idf;
  for (const int64_t count : texts_with) {
    const double share = static_cast<double>(1 + texts.size()) / static_cast<double>(1 + count);
    idf.push_back(static_cast<float>(std::log(share) + 1));
  }
  return idf;
}

// A^T A basis, A being the texts' weights [n, V]. Each column by itself: threads do not show.
RowMajor<double> gram_times(std::span<const TextVector> texts, const RowMajor<double>& basis,
                            int threads) {
  RowMajor<double> result = RowMajor<double>::Zero(basis.rows(), basis.cols());
  parallel_for((basis.cols() + kSlab - 1) / kSlab, threads, [&](int64_t slab) {
    stop_if_asked();
    const int64_t first = slab * kSlab;
    const int64_t width = std::min(kSlab, basis.cols() - first);
    Eigen::Matrix<double, 1, Eigen::Dynamic, Eigen::RowMajor, 1, kSlab> product(width);
    for (const auto& [terms, weights] : texts) {
      product.setZero();
      for (size_t k = 0; k < terms.size(); ++k) {
        product += weights[k] * basis.row(terms[k]).segment(first, width);
      }
      for (size_t k = 0; k < terms.size(); ++k) {
        result.row(terms[k]).segment(first, width) += weights[k] * product;
      }
    }
  });
  return result;
}

RowMajor<double> orthonormal(const RowMajor<double>& columns) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(columns);
  return qr.householderQ() * Eigen::MatrixXd::Identity(columns.rows(), columns.cols());
}

// The texts' leading right singular vectors, [V, d].
Points leading_directions(std::span<const TextVector> texts, const TextSpaceOptions& options) {
  const int64_t width = std::min(options.vocab_size, options.dimensions + kOversampling);
  RowMajor<double> basis(options.vocab_size, width);
  for (int64_t row = 0; row < basis.rows(); ++row) {
    for (int64_t column = 0; column < width; ++column) {
      const uint64_t bits = derive_seed(options.seed, "text directions", static_cast<uint64_t>(row),
                                        static_cast<uint64_t>(column));
      basis(row, column) = unit_interval(bits) - 0.5;
    }
  }
  RowMajor<double> image;
  for (int i = 0; i <= kPowerIterations + 1; ++i) {
    basis = orthonormal(i == 0 ? basis : image);
    image = gram_times(texts, basis, options.threads);
  }
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver(basis.transpose() * image);
  const auto& squares = solver.eigenvalues();  // ascending
  const int64_t rank = (squares.array() > kRankTolerance * squares(width - 1)).count();
  const int64_t kept = std::min(rank, options.dimensions);
  return (basis * solver.eigenvectors().rightCols(kept).rowwise().reverse()).cast<float>();
}

// k-means++ (Arthur, Vassilvitskii, 2007): each next centre is a point, drawn in proportion to the
// squared distance from the centres that are there.
Points spread_centres(const Points& points, int64_t count, uint64_t seed) {
  Points centres(count, points.cols());
  Eigen::VectorXd distance = Eigen::VectorXd::Ones(points.rows());
  for (int64_t c = 0; c < count; ++c) {
    // Where all points are centres, any will do.
    if (!(distance.sum() > 0)) distance.setOnes();
    const uint64_t bits = derive_seed(seed, "text centres", static_cast<uint64_t>(c));
    double left = unit_interval(bits) * distance.sum();
    int64_t chosen = -1;
    for (int64_t i = 0; i < points.rows() && (chosen < 0 || left >= 0); ++i) {
      if (distance(i) <= 0) continue;
      chosen = i;  // the last one if rounding leaves something over
      left -= distance(i);
    }
    centres.row(c) = points.row(chosen);
    const Eigen::VectorXd to_it =
        (points.rowwise() - centres.row(c)).rowwise().squaredNorm().cast<double>();
    distance = c == 0 ? to_it : distance.cwiseMin(to_it).eval();
  }
  return centres;
}

Points balanced_kmeans(const Points& points, const TextClusterOptions& options) {
  Points centres = spread_centres(points, options.num_clusters, options.seed);
  const auto capacities = balanced_capacities(points.rows(), options.num_clusters);
  ScoreMatrix similarities(points.rows(), options.num_clusters);
  Assignment before;
  for (int64_t i = 0; i < options.iterations; ++i) {
    stop_if_asked();
    Eigen::Map<Points>(similarities.values().data(), points.rows(), options.num_clusters)
        .noalias() = points * centres.transpose();
    Assignment assignment =
        assign_sequences(local_scores(similarities), capacities,
                         {AssignmentMethod::optimal, kEpsilon, false, options.threads})
            .expert;
    if (assignment == before) break;
    before = std::move(assignment);
    Points sums = Points::Zero(centres.rows(), centres.cols());
    for (int64_t p = 0; p < points.rows(); ++p) {
      sums.row(before[static_cast<size_t>(p)]) += points.row(p);
    }
    for (int64_t c = 0; c < sums.rows(); ++c) {
      if (sums.row(c).norm() > kNothing) centres.row(c) = sums.row(c).normalized();
    }
  }
  return centres;
}

std::vector<float> flat(const Points& matrix) {
  return {matrix.data(), matrix.data() + matrix.size()};
}

std::vector<float> embed(const TextSpace& space, const TextVector& text) {
  const auto dimensions = static_cast<size_t>(space.dimensions());
  std::vector<float> embedding(dimensions);
  for (size_t k = 0; k < text.terms.size(); ++k) {
    const float* direction = space.projection.data() + text.terms[k] * dimensions;
    for (size_t j = 0; j < dimensions; ++j) embedding[j] += text.weights[k] * direction[j];
  }
  float squares = 0;
  for (const float value : embedding) squares += value * value;
  const float length = std::sqrt(squares);
  for (float& value : embedding) value = length > kNothing ? value / length : 0;
  return embedding;
}

struct SampledSpace {
  TextSpace space;
  std::vector<TextVector> sample;  // the texts that it was found with
};

SampledSpace sample_space(const ReadText& read, int64_t num_texts,
                          const TextSpaceOptions& options) {
  ST_CHECK(options.vocab_size > 0 && options.dimensions > 0);
  const int64_t size = std::min(num_texts, options.max_sample);
  const Permutation shuffled(static_cast<uint64_t>(num_texts),
                             derive_seed(options.seed, "text sample"));
  std::vector<uint64_t> sample;
  for (int64_t i = 0; i < size; ++i) sample.push_back(shuffled(static_cast<uint64_t>(i)));
  std::sort(sample.begin(), sample.end());  // as they lie in the file

  SampledSpace found;
  for (const uint64_t text : sample) {
    stop_if_asked();
    found.sample.push_back(count_terms(read(text), options.vocab_size));
  }
  found.space.idf = inverse_frequencies(found.sample, options.vocab_size);
  for (TextVector& text : found.sample) weigh(text, found.space.idf);
  found.space.projection = flat(leading_directions(found.sample, options));
  return found;
}

}  // namespace

TextSpace text_space(const ReadText& read, int64_t num_texts, const TextSpaceOptions& options) {
  if (num_texts < 1) throw Error("there is no text to find directions in");
  return sample_space(read, num_texts, options).space;
}

TextClusters cluster_texts(const ReadSequence& read, int64_t num_sequences, int64_t seq_length,
                           const TextClusterOptions& options) {
  ST_CHECK(options.num_clusters > 0);
  const int64_t size = std::min(num_sequences, options.max_sample);
  if (size < options.num_clusters) {
    throw Error(fmt::format("{} sequences cannot be {} clusters", size, options.num_clusters));
  }
  const auto read_text = [&](uint64_t sequence) {
    std::vector<int64_t> tokens(static_cast<size_t>(seq_length));
    read(sequence, tokens);
    return tokens;
  };
  const auto [space, texts] = sample_space(read_text, num_sequences, options);
  Points points(size, space.dimensions());
  for (int64_t i = 0; i < size; ++i) {
    const std::vector<float> embedding = embed(space, texts[static_cast<size_t>(i)]);
    std::copy(embedding.begin(), embedding.end(), points.row(i).data());
  }
  return {space, flat(balanced_kmeans(points, options))};
}

double cluster_flops(int64_t num_sequences, int64_t seq_length, const TextClusterOptions& options) {
  const auto sample = static_cast<double>(std::min(num_sequences, options.max_sample));
  const auto vocab = static_cast<double>(options.vocab_size);
  const auto width =
      static_cast<double>(std::min(options.vocab_size, options.dimensions + kOversampling));
  const auto terms = static_cast<double>(std::min(seq_length, options.vocab_size));
  // Each pass: A times the basis, A^T times that, and a QR decomposition with its Q formed.
  const double pass = 4 * sample * terms * width + 4 * vocab * width * width;
  const double kmeans = 2 * sample * static_cast<double>(options.dimensions) *
                        static_cast<double>(options.num_clusters * options.iterations);
  return (kPowerIterations + 2) * pass + 2 * sample * terms * width + kmeans;
}

double choice_flops(const TextClusters& clusters, int64_t num_tokens) {
  return 2 * static_cast<double>(clusters.dimensions()) *
         static_cast<double>(num_tokens + clusters.num_clusters());
}

TextVector tfidf(std::span<const int64_t> tokens, std::span<const float> idf) {
  TextVector text = count_terms(tokens, std::ssize(idf));
  weigh(text, idf);
  return text;
}

std::vector<float> embed(const TextSpace& space, std::span<const int64_t> tokens) {
  return embed(space, tfidf(tokens, space.idf));
}

void rate_clusters(const TextClusters& clusters, std::span<const int64_t> tokens,
                   std::span<float> similarities) {
  ST_CHECK(std::ssize(similarities) == clusters.num_clusters());
  const std::vector<float> text = embed(clusters, tokens);
  for (size_t c = 0; c < similarities.size(); ++c) {
    const float* centre = clusters.centres.data() + c * text.size();
    float cosine = 0;
    for (size_t j = 0; j < text.size(); ++j) cosine += text[j] * centre[j];
    similarities[c] = cosine;
  }
}

}  // namespace smalltalk
