// Who hosts which routers and experts: a pure function of the world's shape. Printed at the start
// of every run, so that nobody has to guess.
//
// Groups: E experts are trained by groups of `group_size` ranks. Asked for 0, the size is the
// largest g that divides the batch size, for which E groups fit into the world with none spanning
// more nodes than it must (ceil(g / ranks of a node)); 1 if the world is smaller than E. Groups are
// contiguous ranks; with more experts than groups, expert e belongs to group e mod G. Ranks that
// are left over are spare: they score sequences, and take evaluation work, but train no expert.
// Without experts (E = 0) there is one group, or as many of a given size as fit, for other models.
//
// Routers: router e is trained by one rank, the first of the ranks e W / E .. (e + 1) W / E - 1 if
// W >= E (the others of these share its scoring), else by rank e mod W.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

struct RankRole {
  int node = 0;
  std::vector<int> trains_routers;  // routers this rank trains (and scores with)
  std::vector<int> scores_routers;  // routers this rank scores with
  int score_part = 0;               // it scores part score_part of score_parts of each chunk
  int score_parts = 1;
  int group = -1;  // -1: spare
  int group_rank = 0;
  std::vector<int> experts;  // experts that its group trains, in order
};

struct RankPlan {
  int num_experts = 0;
  int num_nodes = 0;
  int num_groups = 0;
  int group_size = 0;
  std::vector<RankRole> ranks;   // [W]
  std::vector<int> router_home;  // [E] the rank that trains router e
  std::vector<int> spare;        // ranks without a group
};

// node_of_rank [W]. Error: group_size that does not divide batch_size or exceeds the world.
RankPlan plan_ranks(std::span<const int> node_of_rank, int num_experts, int group_size,
                    int64_t batch_size);
// node_of_rank of a world that is not there, as Slurm's block distribution makes it: contiguous
// ranks, and if `nodes` does not divide `world`, one more on each of the first nodes. Error: not
// 1 <= nodes <= world.
std::vector<int> nodes_in_blocks(int world, int nodes);
// A table for people, one line per rank (ranks with equal roles folded together beyond 32).
std::string to_string(const RankPlan& plan);

}  // namespace smalltalk
