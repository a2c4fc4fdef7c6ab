// Which expert takes which sequence. Training is balanced (SmallTalk LM, section 2.2): order all
// sequences by their best score over all experts, highest first, ties by sequence; go through that
// order; each takes its best expert that still has room, ties by expert. Capacities are N / E, the
// first N mod E experts one more. The result depends on the scores alone, never on ranks, threads
// or blocks. Inference has no capacity: the best score wins.
//
// Nobody walks and nobody gathers scores. The walk is decided by its closing table, the place in
// the order at which each expert filled: sequence i takes its best expert e with key_i <= t_e. The
// experts close one after the other; the next to close is found by a selection over the keys, in
// which every rank counts how many of its own sequences want each open expert up to a key. With E
// experts and keys of b bits that moves about b E^2 / 2 integers per rank, whatever N is. Applying
// the table to the scores proves it: if the counts equal the capacities and the last member of
// each closed expert has the expert's key, then it is the table of the walk.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

using Assignment = std::vector<uint16_t>;  // [N], the expert of each sequence

enum class AssignmentMethod {
  greedy,   // in the order of the best score (the paper's)
  margin,   // in the order of best minus second best score, largest first
  optimal,  // largest total score, within a stated epsilon
  argmax,   // each to its best expert, not balanced: what balance costs
  random,   // knows nothing
};
std::string to_string(AssignmentMethod method);
AssignmentMethod assignment_method(const std::string& name);  // Error naming the known ones

// A place in the order in which sequences choose; smaller is earlier. No two are equal.
struct OrderKey {
  uint32_t rank = 0;      // of the best score or the margin: the higher, the smaller
  uint64_t sequence = 0;  // ties by sequence
  friend auto operator<=>(const OrderKey&, const OrderKey&) = default;
};

struct Closing {
  uint16_t expert = 0;
  OrderKey key;  // of the last sequence that this expert took
  friend bool operator==(const Closing&, const Closing&) = default;
};

// All that decides an assignment besides the scores. Greedy and margin: sequence i takes its best
// expert among those without an entry in the closing table and those with key_i <= their entry; an
// expert of capacity 0 takes nobody. Optimal: the prices prove how good it is.
// Argmax: the capacities are what came of it.
struct AssignmentRule {
  AssignmentMethod method = AssignmentMethod::greedy;
  std::vector<int64_t> capacities;  // [E]
  std::vector<Closing> closings;    // in the order in which the experts filled
  std::vector<double> prices;       // [E], nats
};

// Capacity of each expert, [E]; they sum to N.
std::vector<int64_t> balanced_capacities(int64_t num_sequences, int64_t num_experts);

// Capacities in proportion to `shares` [E] (positive; empty: equal), summing to N: N x share
// rounded down, and one more for the experts with the largest remainders, ties by expert. Error if
// there is not one share for each expert.
std::vector<int64_t> shared_capacities(int64_t num_sequences, int64_t num_experts,
                                       std::span<const double> shares);

// What is left of the capacities beside sequences that keep their experts: counts [E] of them.
// Error naming an expert that keeps more than its capacity.
std::vector<int64_t> room_beside(std::span<const int64_t> counts, std::vector<int64_t> capacities);

// Error if an expert has no sequence, which happens only without balance.
void require_no_empty_shard(std::span<const int64_t> counts, const std::string& where);

// What an assignment did to the sequences of all ranks. The same bits whatever ranks and threads:
// sums are taken in integers (of 2^-24 nats).
struct AssignmentStats {
  std::vector<int64_t> argmax_counts;    // [E] sequences whose best expert this is
  std::vector<int64_t> assigned_counts;  // [E] sequences that were given to it
  int64_t displaced = 0;                 // sequences not given to their best expert
  double mean_score = 0;                 // of the assigned expert, nats per sequence
  double mean_best_score = 0;            // of the best expert, nats per sequence
};

// The assignment of this process's rows, in the order of its blocks.
struct Assigned {
  Assignment expert;
  AssignmentStats stats;
};

// What the selections of a closing table moved between ranks, per rank.
struct SelectionTraffic {
  int key_bits = 0;        // b
  int64_t reductions = 0;  // all-reduces
  int64_t numbers = 0;     // 64-bit integers in them
};
// b E^2 / 2 integers, for keys of b bits: what `numbers` comes to.
double predicted_selection_numbers(int64_t num_experts, int key_bits);

// Finds the closing table of `method` (greedy or margin). Collective: every rank of `ranks` calls,
// with its own rows and the same capacities [E]. All scores must be finite (else Error naming
// sequence and expert); -0 counts as +0. The capacities must sum to the sequences of all ranks.
// Sequence ids are below 2^53. Memory: 10 bytes a row beside the scores. Time: O(N (log N + E)).
template <typename Score>
AssignmentRule balanced_rule(const LocalScores<Score>& scores, std::span<const int64_t> capacities,
                             AssignmentMethod method, int threads = 1,
                             const HostCollectives& ranks = {},
                             SelectionTraffic* traffic = nullptr);

// Gives every row its expert by the closing table, and proves the table on the way: Error if a
// count differs from its capacity or an expert's last member is not the one that closed it (the
// scores are not those that the rule was found with, or the file was damaged). Collective.
template <typename Score>
Assigned apply_rule(const LocalScores<Score>& scores, const AssignmentRule& rule, int threads = 1,
                    const HostCollectives& ranks = {});

// Statistics of any assignment of the local rows. Collective.
template <typename Score>
AssignmentStats assignment_stats(const LocalScores<Score>& scores,
                                 std::span<const uint16_t> assignment, int threads = 1,
                                 const HostCollectives& ranks = {});

// Greedy, on one process.
Assignment balanced_assignment(const ScoreMatrix& scores);

// The best expert of each row, ties by expert. All scores must be finite (else Error).
template <typename Score>
Assignment argmax_assignment(const LocalScores<Score>& scores, int threads = 1);
Assignment argmax_assignment(const ScoreMatrix& scores);

// A balanced assignment that knows nothing: sequences dealt out in a random order, a function of
// the seed alone. The start of the EM and the random-shards control.
Assignment random_assignment(int64_t num_sequences, int64_t num_experts, uint64_t seed);

}  // namespace smalltalk
