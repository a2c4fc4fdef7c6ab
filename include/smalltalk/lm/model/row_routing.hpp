// How a model that merges experts (ModelConfig::merged_experts) weighs them where it scores.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

// Of one row: S segments, L layers that merge, E experts.
struct RowRouting {
  struct Segment {
    int64_t begin = 0;  // its first token
    bool first = true;  // of the row or a document: it weighs all experts alike
  };
  std::vector<Segment> segments;
  std::vector<float> weights;  // [L, S, E], of sum 1 over E

  std::span<const float> of(int64_t layer, int64_t segment, int64_t experts) const {
    const int64_t place = (layer * std::ssize(segments) + segment) * experts;
    return std::span(weights).subspan(static_cast<size_t>(place), static_cast<size_t>(experts));
  }
};

// Hands out the routing of rows first .. last - 1, in order: what visit_log_probs() merges by if it
// is not told otherwise, so of all tokens of a row but the last. The same of bits and errors as
// there. Error: the model merges no experts.
void visit_routing(const Transformer& model, const RowSource& rows, int64_t first, int64_t last,
                   const std::function<void(int64_t row, const RowRouting& routing)>& visit);

// [L][E]: the mean over all segments of these rows but first ones; 1 / E if there are no others.
std::vector<std::vector<double>> mean_routing_weights(const Transformer& model,
                                                      const RowSource& rows, int64_t first,
                                                      int64_t last);

}  // namespace smalltalk
