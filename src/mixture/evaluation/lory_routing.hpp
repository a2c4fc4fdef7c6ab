// How the routers of a Lory model weigh its experts: what a cell holds of each sequence, and the
// figures that follow from it. L layers that merge, E experts. Segments are those that another one
// weighs the experts for: first ones weigh all alike and are left out, as is what is padding alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/lm/model/row_routing.hpp"

namespace smalltalk {

// Numbers of a sequence: how many segments it has, and of each layer the sums over these of each
// expert's weight [E], of how often each is active [E], of the entropy in nats and of the largest
// weight. An expert is active where it weighs more than 2 / E, twice an even share, so never of
// two.
int64_t routing_sums_width(int64_t layers, int64_t experts);
// Fills them. `targets` of the sequence; behind them is padding.
void sum_routing(const RowRouting& routing, int64_t experts, int64_t targets,
                 std::span<double> sums);

struct LayerRouting {
  std::vector<double> mean_weights;  // [E]
  std::vector<bool> active;          // [E], anywhere
  double active_share = 0;           // of all segments and experts
  double entropy = 0;                // mean of a segment, nats
  double largest_weight = 0;         // mean of a segment
};
struct LoryRouting {
  int64_t segments = 0;
  std::vector<LayerRouting> layers;  // [L]; none without segments
};
// Of sequences' numbers [N, width].
LoryRouting lory_routing(const ScoreMatrix& sums, int64_t experts);
// Mean weights in one layer by the sequences' labels, [labels][E]; empty of one without segments.
std::vector<std::vector<double>> weights_by_label(const ScoreMatrix& sums, int64_t experts,
                                                  int64_t layer, std::span<const uint16_t> labels,
                                                  int64_t num_labels);

// Layers, from 0 on among those that merge, that weigh all experts all but alike: their entropy is
// above 99 % of log E.
std::vector<int64_t> dead_routers(const LoryRouting& routing, int64_t experts);
// Experts that are active in no layer; of two, which cannot be, none.
std::vector<int64_t> dead_experts(const LoryRouting& routing, int64_t experts);
// A line about the one and one about the other, if there are any. Layers as the model counts them.
std::vector<std::string> routing_warnings(const std::vector<int64_t>& dead_router_layers,
                                          const std::vector<int64_t>& dead_experts);

}  // namespace smalltalk
