// Feed-forwards whose experts are merged for each segment of a sequence (Lory, Zhong et al. 2024,
// section 3.1 and appendix A): a linear router and a softmax over all experts turn the mean of the
// inputs of the segment before into weights, with which the matrices of all experts are averaged.
// The first segment uses its own mean, and its weights are taken as constants when gradients are
// computed. Where attention stays within documents, each document is a sequence of its own. With
// SegmentRouting::prefix the first segment decides for all that follow (the paper's figure 3).
//
// Matrices are merged some rows at a time for several segments at once, so that what is merged
// stays in the cache, and again in the backward pass. T tokens of a pass, H hidden, E experts, S
// segments.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "lm/cpu/gemm.hpp"
#include "lm/model/parameter_layout.hpp"
#include "smalltalk/lm/model/row_routing.hpp"

namespace smalltalk {

struct Segment {
  int64_t begin = 0, size = 0;  // tokens of the pass
  int64_t source = 0;           // the segment whose mean decides; a first one's is itself
};

// Of `rows` sequences of `length` tokens; starts as in AttentionShape. prompt_tokens > 0: one
// segment of so many tokens, and one of all that follow.
std::vector<Segment> cut_into_segments(const ModelConfig& config, int64_t rows, int64_t length,
                                       const int32_t* starts, int64_t prompt_tokens = 0);
// The routing of the first `rows` of the rows of `length` tokens that were cut, of the weights [S,
// E] of each layer that merges.
std::vector<RowRouting> routing_by_row(const std::vector<Segment>& segments, int64_t experts,
                                       const std::vector<const float*>& layers, int64_t rows,
                                       int64_t length);
// The most that there may be.
int64_t max_segments(const ModelConfig& config, int64_t rows, int64_t length);

// A matrix [rows, columns] of each expert: of expert e at `data` + e * stride.
struct ExpertMatrices {
  int64_t rows, columns, stride;
  const float* data;
};

class MergedExperts {
 public:
  explicit MergedExperts(const ModelConfig& config) : config_(config) {}

  void begin(std::vector<Segment> segments) { segments_ = std::move(segments); }
  const std::vector<Segment>& segments() const { return segments_; }
  int64_t num_segments() const { return static_cast<int64_t>(segments_.size()); }

  // weights [S, E] from x [T, H] and the router [E, H]. If not `leaky`, first segments weigh all
  // experts alike, so that no token's result depends on later ones.
  void route(const float* x, const float* router, bool leaky, float* weights);
  // out [T, rows] = x [T, columns] times the merged matrix, or +=.
  void multiply(const ExpertMatrices& matrices, const float* weights, const float* x,
                bool accumulate, float* out);
  // d_x = the gradient of x, given that of `out`; adds those of the matrices to d_matrices, which
  // lie as the matrices do, and those of the weights to d_weights [S, E].
  void multiply_backward(const ExpertMatrices& matrices, const float* weights, const float* x,
                         const float* d_out, float* d_x, float* d_matrices, float* d_weights);
  // Of route(): adds to d_router and d_x. Overwrites d_weights.
  void route_backward(const float* x, const float* router, const float* weights, float* d_weights,
                      float* d_router, float* d_x);

  // Floats that it takes for itself.
  static int64_t memory_floats(const ModelConfig& config, int64_t segments, bool backward);

 private:
  // Calls work(first row, rows, first segment, segments) with what is merged in merged_.
  template <typename Work>
  void for_tiles(const ExpertMatrices& matrices, const float* weights, Work&& work);
  void pool(const float* x);

  ModelConfig config_;
  std::vector<Segment> segments_;
  std::vector<float> pooled_, d_pooled_;  // [S, H], of each segment's source
  std::vector<float> merged_, d_merged_;  // of a tile, for each segment of a block
};

}  // namespace smalltalk
