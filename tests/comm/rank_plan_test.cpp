#include "smalltalk/comm/rank_plan.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

// W ranks, `per_node` on each node.
std::vector<int> nodes(int world, int per_node) {
  std::vector<int> node_of_rank;
  for (int r = 0; r < world; ++r) node_of_rank.push_back(r / per_node);
  return node_of_rank;
}

struct Row {
  int world, per_node, experts, asked, batch;  // given
  int groups, size, spare;                     // expected
};

TEST(RankPlan, Table) {
  const Row rows[] = {
      // one rank
      {1, 1, 1, 0, 32, 1, 1, 0},
      {1, 1, 4, 0, 32, 1, 1, 0},
      // W < E: one rank each, experts in turn
      {2, 2, 4, 0, 32, 2, 1, 0},
      {3, 2, 8, 0, 32, 3, 1, 0},
      // W = E
      {4, 2, 4, 0, 32, 4, 1, 0},
      // W > E, on nodes of 1, 2, 4, 8 ranks
      {8, 1, 4, 0, 32, 4, 2, 0},
      {8, 2, 4, 0, 32, 4, 2, 0},
      {8, 4, 2, 0, 32, 2, 4, 0},
      {16, 8, 4, 0, 32, 4, 4, 0},
      // W not divisible by E
      {5, 8, 4, 0, 32, 4, 1, 1},
      {11, 16, 5, 0, 32, 5, 2, 1},
      // the batch decides
      {12, 16, 4, 0, 32, 4, 2, 4},  // 3 does not divide 32
      {12, 16, 4, 0, 33, 4, 3, 0},
      {16, 16, 2, 0, 5, 2, 5, 6},
      {16, 16, 2, 0, 1, 2, 1, 14},
      // 12 experts on nodes of 8
      {24, 8, 12, 0, 32, 12, 2, 0},
      {64, 8, 12, 0, 40, 12, 4, 16},  // 5 would leave room for 8 groups only
      {96, 8, 12, 0, 32, 12, 8, 0},
      {192, 8, 12, 0, 32, 12, 16, 0},  // two nodes each
      // groups that span nodes, but no more than they must
      {12, 4, 2, 0, 36, 2, 6, 0},  // 0-5 and 6-11 lie on two nodes each
      {12, 4, 1, 0, 36, 1, 12, 0},
      {10, 4, 2, 0, 15, 2, 5, 0},  // 0-4 and 5-9: two nodes each
      // asked for
      {8, 8, 2, 2, 32, 2, 2, 4},
      {8, 8, 8, 4, 32, 2, 4, 0},   // fewer groups than experts
      {16, 8, 3, 5, 40, 2, 5, 6},  // 5-9 would span two nodes
      {8, 4, 1, 8, 32, 1, 8, 0},
      // one expert
      {8, 4, 1, 0, 32, 1, 8, 0},
  };
  for (const Row& row : rows) {
    const RankPlan plan =
        plan_ranks(nodes(row.world, row.per_node), row.experts, row.asked, row.batch);
    const std::string text = "W " + std::to_string(row.world) + ", nodes of " +
                             std::to_string(row.per_node) + "\n" + to_string(plan);
    EXPECT_EQ(plan.num_groups, row.groups) << text;
    EXPECT_EQ(plan.group_size, row.size) << text;
    EXPECT_EQ(static_cast<int>(plan.spare.size()), row.spare) << text;
  }
}

TEST(RankPlan, WhoDoesWhat) {
  const RankPlan plan = plan_ranks(nodes(6, 4), 2, 2, 8);
  EXPECT_EQ(plan.router_home, (std::vector<int>{0, 3}));
  EXPECT_EQ(plan.ranks[0].trains_routers, std::vector<int>{0});
  EXPECT_TRUE(plan.ranks[1].trains_routers.empty());
  EXPECT_EQ(plan.ranks[4].scores_routers, std::vector<int>{1});
  EXPECT_EQ(plan.ranks[4].score_part, 1);
  EXPECT_EQ(plan.ranks[4].score_parts, 3);
  EXPECT_EQ(plan.ranks[2].group, 1);
  EXPECT_EQ(plan.ranks[3].group_rank, 1);
  EXPECT_EQ(plan.ranks[3].experts, std::vector<int>{1});
  EXPECT_EQ(plan.spare, (std::vector<int>{4, 5}));

  const RankPlan few = plan_ranks(nodes(2, 2), 5, 0, 8);
  EXPECT_EQ(few.ranks[1].trains_routers, (std::vector<int>{1, 3}));
  EXPECT_EQ(few.ranks[0].scores_routers, (std::vector<int>{0, 2, 4}));
  EXPECT_EQ(few.ranks[0].experts, (std::vector<int>{0, 2, 4}));
}

// Ranks dealt over the nodes in turn: contiguous ranks of more than one never share a node.
TEST(RankPlan, InterleavedNodes) {
  const std::vector<int> dealt = {0, 1, 0, 1, 0, 1, 0, 1};
  EXPECT_EQ(plan_ranks(dealt, 2, 0, 8).group_size, 1);
  const RankPlan forced = plan_ranks(dealt, 2, 4, 8);
  EXPECT_EQ(forced.group_size, 4);
  EXPECT_EQ(forced.num_groups, 1);
}

TEST(RankPlan, Refuses) {
  EXPECT_THROW(plan_ranks({}, 1, 0, 8), Error);
  EXPECT_THROW(plan_ranks(nodes(4, 4), -1, 0, 8), Error);
  EXPECT_THROW(plan_ranks(nodes(4, 4), 2, 5, 40), Error);  // exceeds the world
  EXPECT_THROW(plan_ranks(nodes(4, 4), 2, 3, 8), Error);   // does not divide the batch
  EXPECT_THROW(plan_ranks(nodes(4, 4), 2, -1, 8), Error);
  EXPECT_THROW(plan_ranks(nodes(4, 4), 2, 0, 0), Error);
}

// What a run without a mixture trains: one model after another, or several side by side.
TEST(RankPlan, WithoutExpertsTheGroupsTakeOtherModels) {
  const RankPlan all = plan_ranks(nodes(4, 4), 0, 0, 8);
  EXPECT_EQ(all.num_groups, 1);
  EXPECT_EQ(all.group_size, 4);
  const RankPlan several = plan_ranks(nodes(5, 5), 0, 2, 8);
  EXPECT_EQ(several.num_groups, 2);
  EXPECT_EQ(several.spare, std::vector<int>{4});
  for (const RankRole& rank : several.ranks) {
    EXPECT_TRUE(rank.experts.empty() && rank.trains_routers.empty() && rank.scores_routers.empty());
  }
}

void check_properties(int world, int per_node, int experts, int asked, int batch) {
  const RankPlan plan = plan_ranks(nodes(world, per_node), experts, asked, batch);
  ASSERT_EQ(static_cast<int>(plan.ranks.size()), world);
  ASSERT_EQ(plan.num_nodes, (world + per_node - 1) / per_node);
  ASSERT_EQ(batch % plan.group_size, 0);
  if (asked > 0) {
    ASSERT_EQ(plan.group_size, asked);
  }
  if (asked == 0) {
    ASSERT_EQ(plan.num_groups, std::min(world, experts));
  }

  // Groups: contiguous, whole, on no more nodes than they must; every expert in exactly one.
  std::vector<int> groups_of_expert(static_cast<size_t>(experts), 0);
  int grouped = 0;
  for (int g = 0; g < plan.num_groups; ++g) {
    int first = 0;
    while (plan.ranks[size_t(first)].group != g) ASSERT_LT(++first, world);
    std::set<int> on_nodes;
    for (int i = 0; i < plan.group_size; ++i) {
      ASSERT_LT(first + i, world);
      const RankRole& role = plan.ranks[size_t(first + i)];
      ASSERT_EQ(role.group, g);
      ASSERT_EQ(role.group_rank, i);
      ASSERT_EQ(role.experts, plan.ranks[size_t(first)].experts);
      on_nodes.insert(role.node);
      ++grouped;
    }
    const int largest_node = std::min(per_node, world);
    ASSERT_LE(static_cast<int>(on_nodes.size()),
              (plan.group_size + largest_node - 1) / largest_node);
    for (const int e : plan.ranks[size_t(first)].experts) ++groups_of_expert[size_t(e)];
  }
  for (const int count : groups_of_expert) ASSERT_EQ(count, 1);
  ASSERT_EQ(grouped + static_cast<int>(plan.spare.size()), world);
  for (const int rank : plan.spare) {
    ASSERT_EQ(plan.ranks[size_t(rank)].group, -1);
    ASSERT_TRUE(plan.ranks[size_t(rank)].experts.empty());
  }

  // Routers: one home each, and each router scores every sequence exactly once.
  std::vector<int> homes(static_cast<size_t>(experts), 0);
  std::vector<std::vector<int>> covered(static_cast<size_t>(experts), std::vector<int>(1000, 0));
  for (int r = 0; r < world; ++r) {
    const RankRole& role = plan.ranks[size_t(r)];
    for (const int e : role.trains_routers) {
      ++homes[size_t(e)];
      ASSERT_EQ(plan.router_home[size_t(e)], r);
      ASSERT_TRUE(std::count(role.scores_routers.begin(), role.scores_routers.end(), e));
    }
    ASSERT_GE(role.score_part, 0);
    ASSERT_LT(role.score_part, role.score_parts);
    for (const int e : role.scores_routers) {
      const int begin = 1000 * role.score_part / role.score_parts;
      const int end = 1000 * (role.score_part + 1) / role.score_parts;
      for (int i = begin; i < end; ++i) ++covered[size_t(e)][size_t(i)];
    }
  }
  for (int e = 0; e < experts; ++e) {
    ASSERT_EQ(homes[size_t(e)], 1);
    for (const int times : covered[size_t(e)]) ASSERT_EQ(times, 1);
  }
  ASSERT_FALSE(to_string(plan).empty());
}

TEST(RankPlan, Properties) {
  for (const int world : {1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 31, 32, 48, 64, 100}) {
    for (const int per_node : {1, 2, 3, 4, 8}) {
      for (const int experts : {1, 2, 3, 4, 5, 8, 12, 32}) {
        for (const int batch : {1, 6, 32, 120}) {
          SCOPED_TRACE(testing::Message() << "W " << world << " per node " << per_node << " E "
                                          << experts << " batch " << batch);
          check_properties(world, per_node, experts, 0, batch);
          for (const int asked : {1, 2, 3, 4, 8}) {
            if (asked > world || batch % asked != 0) continue;
            // A last node that is not full may be too small; that case has its own row above.
            check_properties(world, per_node, experts, asked, batch);
          }
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(RankPlan, ANodeInBlocks) {
  using Nodes = std::vector<int>;
  EXPECT_EQ(nodes_in_blocks(1, 1), Nodes({0}));
  EXPECT_EQ(nodes_in_blocks(6, 2), Nodes({0, 0, 0, 1, 1, 1}));
  EXPECT_EQ(nodes_in_blocks(10, 4), Nodes({0, 0, 0, 1, 1, 1, 2, 2, 3, 3}));  // srun -n 10 -N 4
  EXPECT_EQ(nodes_in_blocks(3, 3), Nodes({0, 1, 2}));
  EXPECT_THROW(nodes_in_blocks(3, 4), Error);
  EXPECT_THROW(nodes_in_blocks(3, 0), Error);
  EXPECT_THROW(nodes_in_blocks(0, 1), Error);
}

TEST(RankPlan, TextIsReadable) {
  EXPECT_EQ(to_string(plan_ranks(nodes(5, 4), 2, 0, 8)),
            "2 experts, 5 ranks on 2 nodes: 2 groups of 2 ranks, 1 spare\n"
            "rank  node  trains router  scores with router  group     experts\n"
            "0     0     0              0 part 0 of 2       0 rank 0  0\n"
            "1     0     -              0 part 1 of 2       0 rank 1  0\n"
            "2     0     1              1 part 0 of 3       1 rank 0  1\n"
            "3     0     -              1 part 1 of 3       1 rank 1  1\n"
            "4     1     -              1 part 2 of 3       spare     -\n");
  // Beyond 32 ranks, equal ones share a line.
  const std::string large = to_string(plan_ranks(nodes(1024, 8), 32, 0, 1024));
  EXPECT_LE(std::count(large.begin(), large.end(), '\n'), 2 + 128) << large;
  EXPECT_NE(large.find("\n0-7 "), std::string::npos) << large;
}

}  // namespace
}  // namespace smalltalk
