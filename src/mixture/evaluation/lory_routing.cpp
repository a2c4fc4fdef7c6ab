#include "mixture/evaluation/lory_routing.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

int64_t layer_width(int64_t experts) { return 2 * experts + 2; }

// A layer's part of a sequence's numbers, or of their sums over sequences.
template <typename T>
struct LayerSums {
  LayerSums(std::span<T> sums, int64_t layer, int64_t experts) {
    const auto all = static_cast<size_t>(experts);
    const auto begin = static_cast<size_t>(1 + layer * layer_width(experts));
    weights = sums.subspan(begin, all);
    active = sums.subspan(begin + all, all);
    entropy = &sums[begin + 2 * all];
    largest_weight = entropy + 1;
  }
  std::span<T> weights, active;
  T *entropy, *largest_weight;
};

}  // namespace

int64_t routing_sums_width(int64_t layers, int64_t experts) {
  return 1 + layers * layer_width(experts);
}

void sum_routing(const RowRouting& routing, int64_t experts, int64_t targets,
                 std::span<double> sums) {
  std::ranges::fill(sums, 0.0);
  const int64_t layers = (std::ssize(sums) - 1) / layer_width(experts);
  for (int64_t s = 0; s < std::ssize(routing.segments); ++s) {
    const RowRouting::Segment& segment = routing.segments[static_cast<size_t>(s)];
    if (segment.first || segment.begin >= targets) continue;
    ++sums[0];
    for (int64_t layer = 0; layer < layers; ++layer) {
      const LayerSums<double> of(sums, layer, experts);
      const std::span<const float> weights = routing.of(layer, s, experts);
      for (size_t e = 0; e < weights.size(); ++e) {
        const double weight = weights[e];
        of.weights[e] += weight;
        if (weight > 2 / static_cast<double>(experts)) ++of.active[e];
        if (weight > 0) *of.entropy -= weight * std::log(weight);
      }
      *of.largest_weight += *std::ranges::max_element(weights);
    }
  }
}

LoryRouting lory_routing(const ScoreMatrix& sums, int64_t experts) {
  std::vector<double> total(static_cast<size_t>(sums.num_experts()));
  for (int64_t i = 0; i < sums.num_sequences(); ++i) {
    std::ranges::transform(total, sums.row(i), total.begin(), std::plus<double>());
  }
  LoryRouting routing{static_cast<int64_t>(total[0]), {}};
  if (routing.segments == 0) return routing;
  for (int64_t layer = 0; layer < (std::ssize(total) - 1) / layer_width(experts); ++layer) {
    const LayerSums<double> of(total, layer, experts);
    LayerRouting& figures = routing.layers.emplace_back();
    double active = 0;
    for (size_t e = 0; e < of.weights.size(); ++e) {
      figures.mean_weights.push_back(of.weights[e] / total[0]);
      figures.active.push_back(of.active[e] > 0);
      active += of.active[e];
    }
    figures.active_share = active / (total[0] * static_cast<double>(experts));
    figures.entropy = *of.entropy / total[0];
    figures.largest_weight = *of.largest_weight / total[0];
  }
  return routing;
}

std::vector<std::vector<double>> weights_by_label(const ScoreMatrix& sums, int64_t experts,
                                                  int64_t layer, std::span<const uint16_t> labels,
                                                  int64_t num_labels) {
  ST_CHECK(std::ssize(labels) == sums.num_sequences());
  const auto count = static_cast<size_t>(num_labels);
  std::vector<std::vector<double>> means(count, std::vector<double>(static_cast<size_t>(experts)));
  std::vector<double> segments(count);
  for (int64_t i = 0; i < sums.num_sequences(); ++i) {
    const uint16_t label = labels[static_cast<size_t>(i)];
    const LayerSums<const float> of(sums.row(i), layer, experts);
    std::vector<double>& mean = means[label];
    std::ranges::transform(mean, of.weights, mean.begin(), std::plus<double>());
    segments[label] += sums.row(i)[0];
  }
  for (size_t label = 0; label < count; ++label) {
    if (segments[label] == 0) means[label].clear();
    for (double& weight : means[label]) weight /= segments[label];
  }
  return means;
}

std::vector<int64_t> dead_routers(const LoryRouting& routing, int64_t experts) {
  std::vector<int64_t> dead;
  for (size_t layer = 0; layer < routing.layers.size(); ++layer) {
    const double most = std::log(static_cast<double>(experts));
    if (routing.layers[layer].entropy > 0.99 * most) dead.push_back(static_cast<int64_t>(layer));
  }
  return dead;
}

std::vector<int64_t> dead_experts(const LoryRouting& routing, int64_t experts) {
  std::vector<int64_t> dead;
  if (experts <= 2 || routing.layers.empty()) return dead;
  for (int64_t e = 0; e < experts; ++e) {
    const bool active = std::ranges::any_of(
        routing.layers, [&](const LayerRouting& layer) { return layer.active[e]; });
    if (!active) dead.push_back(e);
  }
  return dead;
}

std::vector<std::string> routing_warnings(const std::vector<int64_t>& dead_router_layers,
                                          const std::vector<int64_t>& dead_experts) {
  std::vector<std::string> lines;
  if (!dead_router_layers.empty()) {
    lines.push_back(fmt::format(
        "Lory's routers weigh all experts all but alike in these layers: {} (entropy above 99 % of "
        "log E)",
        fmt::join(dead_router_layers, ", ")));
  }
  if (!dead_experts.empty()) {
    lines.push_back(
        fmt::format("Lory's experts that weigh more than 2 / E in no segment of any layer: {}",
                    fmt::join(dead_experts, ", ")));
  }
  return lines;
}

}  // namespace smalltalk
