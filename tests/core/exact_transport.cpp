#include "exact_transport.hpp"

#include "smalltalk/core/system/error.hpp"

#if __has_include(<lemon/network_simplex.h>)
#include <lemon/network_simplex.h>
#include <lemon/smart_graph.h>

namespace smalltalk {

const bool has_exact_transport = true;

int64_t exact_transport(std::span<const int64_t> values, std::span<const int64_t> capacities) {
  using Graph = lemon::SmartDigraph;
  const size_t experts = capacities.size();
  const size_t sequences = values.size() / experts;
  Graph graph;
  Graph::NodeMap<int64_t> supply(graph);
  Graph::ArcMap<int64_t> cost(graph);
  std::vector<Graph::Node> nodes;
  for (const int64_t capacity : capacities) {
    nodes.push_back(graph.addNode());
    supply[nodes.back()] = -capacity;
  }
  for (size_t i = 0; i < sequences; ++i) {
    const auto node = graph.addNode();
    supply[node] = 1;
    for (size_t e = 0; e < experts; ++e) {
      cost[graph.addArc(node, nodes[e])] = -values[i * experts + e];
    }
  }
  lemon::NetworkSimplex<Graph, int64_t, int64_t> simplex(graph);
  simplex.supplyMap(supply).costMap(cost);
  ST_CHECK(simplex.run() == simplex.OPTIMAL);
  return -simplex.totalCost<int64_t>();
}

}  // namespace smalltalk

#else

namespace smalltalk {

const bool has_exact_transport = false;

int64_t exact_transport(std::span<const int64_t>, std::span<const int64_t>) {
  throw Error("built without LEMON");
}

}  // namespace smalltalk

#endif
