#include "smalltalk/comm/rank_plan.hpp"

#include <algorithm>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {
namespace {

// First ranks of groups of `size` contiguous ranks, none of which spans more nodes than it must, at
// most `most` of them. Taking the first place that fits each time gives as many as there can be.
std::vector<int> place_groups(std::span<const int> node_of_rank, int num_nodes, int size,
                              int most) {
  std::vector<int> ranks_of_node(static_cast<size_t>(num_nodes), 0);
  for (const int node : node_of_rank) ++ranks_of_node[static_cast<size_t>(node)];
  const int largest_node = *std::max_element(ranks_of_node.begin(), ranks_of_node.end());
  const int allowed_nodes = (size + largest_node - 1) / largest_node;

  std::vector<int> firsts;
  std::vector<int> in_window(static_cast<size_t>(num_nodes),
                             0);  // ranks of each node in the window
  int nodes = 0;                  // of the window [end - size + 1, end]
  const int world = static_cast<int>(node_of_rank.size());
  for (int end = 0; end < world && static_cast<int>(firsts.size()) < most; ++end) {
    const int first = end - size + 1;
    if (in_window[static_cast<size_t>(node_of_rank[static_cast<size_t>(end)])]++ == 0) ++nodes;
    if (first > 0) {
      const int gone = node_of_rank[static_cast<size_t>(first - 1)];
      if (--in_window[static_cast<size_t>(gone)] == 0) --nodes;
    }
    const bool free = firsts.empty() ? first >= 0 : first >= firsts.back() + size;
    if (free && nodes <= allowed_nodes) firsts.push_back(first);
  }
  return firsts;
}

// The largest group size of which one group per expert fits; 1 always does, as W >= E.
int largest_group_size(std::span<const int> node_of_rank, int num_nodes, int num_experts,
                       int64_t batch_size) {
  const int world = static_cast<int>(node_of_rank.size());
  for (int size = world / num_experts; size > 1; --size) {
    if (batch_size % size != 0) continue;
    const auto firsts = place_groups(node_of_rank, num_nodes, size, num_experts);
    if (static_cast<int>(firsts.size()) == num_experts) return size;
  }
  return 1;
}

void plan_groups(RankPlan& plan, std::span<const int> node_of_rank) {
  // Without a mixture there may be as many groups as fit: each takes one of the other models.
  const int most = plan.num_experts > 0 ? plan.num_experts : static_cast<int>(node_of_rank.size());
  auto firsts = place_groups(node_of_rank, plan.num_nodes, plan.group_size, most);
  // A size that was asked for must be had, even on ranks dealt over the nodes in turn.
  if (firsts.empty()) firsts.push_back(0);
  plan.num_groups = static_cast<int>(firsts.size());
  for (int group = 0; group < plan.num_groups; ++group) {
    for (int i = 0; i < plan.group_size; ++i) {
      RankRole& role = plan.ranks[static_cast<size_t>(firsts[static_cast<size_t>(group)] + i)];
      role.group = group;
      role.group_rank = i;
      for (int e = group; e < plan.num_experts; e += plan.num_groups) role.experts.push_back(e);
    }
  }
  for (size_t rank = 0; rank < plan.ranks.size(); ++rank) {
    if (plan.ranks[rank].group < 0) plan.spare.push_back(static_cast<int>(rank));
  }
}

void plan_routers(RankPlan& plan) {
  const auto world = static_cast<int64_t>(plan.ranks.size());
  for (int e = 0; e < plan.num_experts; ++e) {
    const auto [begin, end] = world < plan.num_experts ? std::pair(e % world, e % world + 1)
                                                       : part_of_range(world, e, plan.num_experts);
    plan.router_home.push_back(static_cast<int>(begin));
    plan.ranks[static_cast<size_t>(begin)].trains_routers.push_back(e);
    for (int64_t rank = begin; rank < end; ++rank) {
      RankRole& role = plan.ranks[static_cast<size_t>(rank)];
      role.scores_routers.push_back(e);
      role.score_part = static_cast<int>(rank - begin);
      role.score_parts = static_cast<int>(end - begin);
    }
  }
}

}  // namespace

RankPlan plan_ranks(std::span<const int> node_of_rank, int num_experts, int group_size,
                    int64_t batch_size) {
  const int world = static_cast<int>(node_of_rank.size());
  if (world < 1) throw Error("rank plan: the world has no ranks");
  if (num_experts < 0) throw Error("rank plan: mixture.experts must not be negative");
  if (batch_size < 1) throw Error("rank plan: expert.batch_size must be at least 1");
  if (group_size < 0) throw Error("rank plan: mixture.group_size must not be negative");
  if (group_size > world) {
    throw Error("mixture.group_size = " + std::to_string(group_size) + " exceeds the world of " +
                std::to_string(world) + " ranks: start more ranks or make the groups smaller");
  }
  if (group_size > 0 && batch_size % group_size != 0) {
    throw Error("mixture.group_size = " + std::to_string(group_size) +
                " does not divide expert.batch_size = " + std::to_string(batch_size));
  }
  const auto [lowest, highest] = std::minmax_element(node_of_rank.begin(), node_of_rank.end());
  if (*lowest < 0) throw Error("rank plan: a node has a negative number");

  RankPlan plan;
  plan.num_experts = num_experts;
  plan.num_nodes = *highest + 1;
  plan.ranks.resize(node_of_rank.size());
  for (size_t rank = 0; rank < plan.ranks.size(); ++rank) {
    plan.ranks[rank].node = node_of_rank[rank];
  }
  const int groups = std::max(num_experts, 1);
  plan.group_size = group_size > 0
                        ? group_size
                        : largest_group_size(node_of_rank, plan.num_nodes, groups, batch_size);
  plan_groups(plan, node_of_rank);
  plan_routers(plan);
  return plan;
}

std::vector<int> nodes_in_blocks(int world, int nodes) {
  if (nodes < 1 || nodes > world) {
    throw Error("a world of " + std::to_string(world) + " ranks cannot lie on " +
                std::to_string(nodes) + " nodes");
  }
  std::vector<int> node_of_rank;
  for (int node = 0; node < nodes; ++node) {
    const int ranks = world / nodes + (node < world % nodes ? 1 : 0);
    node_of_rank.insert(node_of_rank.end(), static_cast<size_t>(ranks), node);
  }
  return node_of_rank;
}

}  // namespace smalltalk
