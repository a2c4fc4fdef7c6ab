// Feed-forwards whose experts are merged for each segment (cpu/merged_experts.hpp), forward and
// backward, in the library's products: one merges the experts for some segments, a block, and one
// batched product takes the tokens of each segment through its own merged matrix. Both are done
// again on the way back, so that only one block's merged matrices exist at a time. T tokens, H
// hidden, E experts, S segments; "the type" is that of the products. Gradients are added up in a
// fixed order.
//
// The table of segments is made on the host. A block's segments are filled up with zeros to its
// longest: nothing is copied where segment_tokens divides the length, else tokens are gathered
// before each product and back behind it. Without documents all shapes are functions of rows and
// length. With documents they are not, so nothing can be recorded, a block stays within a row, so
// that a row's bits are its own, and a short document costs as much as its block's longest segment.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "lm/cpu/merged_experts.hpp"
#include "lm/torch/torch_weights.hpp"

namespace smalltalk {

// The first tokens of their documents, within a row, as AttentionShape has them, where each
// `document_end` begins one: of rows of row_tokens, without their last token when `targets`. A run
// of padding, which nothing sees and nobody predicts, is one document here, not one for each token.
std::vector<int32_t> document_starts(std::span<const int64_t> tokens, int64_t rows,
                                     int64_t row_tokens, bool targets, int64_t document_end);

class MergedSegments {
 public:
  MergedSegments() = default;  // no experts are merged
  // Of rows of `length` tokens, from cut_into_segments().
  // If not `leaky`, first segments weigh all experts alike.
  MergedSegments(const ModelConfig& config, const std::vector<Segment>& segments, int64_t length,
                 bool leaky, at::Device device);

  // weights [S, E] float32 from x [T, H] and the router [E, H], both of the type.
  at::Tensor route(const at::Tensor& x, const at::Tensor& router) const;
  // x [T, in] times the merged matrices of experts [E, out, in] -> [T, out], all of the type.
  at::Tensor product(const at::Tensor& x, const at::Tensor& experts,
                     const at::Tensor& weights) const;
  // Adds the gradients of the experts, and to those of the weights, d_weights [S, E] float32; ->
  // that of x.
  at::Tensor product_backward(const at::Tensor& x, TorchWeight& experts, const at::Tensor& weights,
                              const at::Tensor& d_out, at::Tensor& d_weights) const;
  // Of route(): adds the gradient of the router [1, E, H] and to d_x [T, H] of the type.
  void route_backward(const at::Tensor& x, TorchWeight& router, const at::Tensor& weights,
                      const at::Tensor& d_weights, at::Tensor& d_x) const;

  // For rows of `length` tokens without documents, with numbers of so many bytes in products: bytes
  // that a layer's backward pass takes for itself at most, and those of the table.
  static double work_bytes(const ModelConfig& config, int64_t rows, int64_t length,
                           double number_bytes);
  static double table_bytes(const ModelConfig& config, int64_t rows, int64_t length);

 private:
  struct Block {
    int64_t first = 0, count = 0;   // segments
    int64_t begin = 0, tokens = 0;  // of the pass
    int64_t width = 0;              // tokens of the longest segment
    // Undefined where all segments are alike. Which of the block's tokens fills each place
    // [count * width], whether one does [count * width, 1], and the places of its tokens [tokens].
    at::Tensor sources, filled, places;
  };
  static at::Tensor padded(const Block& block, const at::Tensor& x, bool zeros);
  static at::Tensor merged(const Block& block, const at::Tensor& experts,
                           const at::Tensor& weights);
  static void multiply(const Block& block, const at::Tensor& a, const at::Tensor& b,
                       at::Tensor& out);
  at::Tensor pooled(const at::Tensor& x) const;  // [S, H] float32, of each segment's source

  bool leaky_ = false;
  std::vector<Block> blocks_;
  at::Tensor sources_;     // of segments [S], int64
  at::Tensor segment_of_;  // of tokens [T], int64
  at::Tensor sizes_;       // [S, 1], float32
  at::Tensor routed_;      // [S, 1] bool: not by its own mean
};

}  // namespace smalltalk
