#include "smalltalk/core/assignment/compare_methods.hpp"

#include <algorithm>
#include <numeric>

#include "smalltalk/core/assignment/optimal_assignment.hpp"
#include "smalltalk/core/assignment/score_codes.hpp"
#include "smalltalk/core/system/random.hpp"

namespace smalltalk {

namespace {

// Deals the sequences out at random, as many to each expert as it has room.
Assignment deal_out(const LocalScores<float>& scores, uint64_t first_sequence,
                    std::span<const int64_t> capacities) {
  std::vector<uint64_t> ends(capacities.size());
  std::inclusive_scan(capacities.begin(), capacities.end(), ends.begin(), std::plus(), uint64_t{0});
  const Permutation place(std::max<uint64_t>(1, ends.back()), derive_seed(1, "random assignment"));
  Assignment assignment;
  for (const auto& block : scores.blocks) {
    const size_t rows = block.values.size() / ends.size();
    for (size_t row = 0; row < rows; ++row) {
      const uint64_t card = place(block.first_sequence + row - first_sequence);
      assignment.push_back(
          static_cast<uint16_t>(std::upper_bound(ends.begin(), ends.end(), card) - ends.begin()));
    }
  }
  return assignment;
}

// Greedy on what travels between ranks.
Assignment greedy_on_codes(const LocalScores<float>& scores, std::span<const int64_t> capacities,
                           AssignOptions options, const HostCollectives& ranks) {
  std::vector<float> values;
  for (const auto& block : scores.blocks) {
    values.insert(values.end(), block.values.begin(), block.values.end());
  }
  const ScoreCoding coding = find_score_coding(values, ranks);
  std::vector<uint16_t> codes(values.size());
  encode_scores(values, coding, codes);
  LocalScores<uint16_t> coded{scores.num_experts, {}, coding.lowest, coding.step};
  size_t at = 0;
  for (const auto& block : scores.blocks) {
    coded.blocks.push_back(
        {block.first_sequence, std::span(codes).subspan(at, block.values.size())});
    at += block.values.size();
  }
  options.method = AssignmentMethod::greedy;
  return assign_sequences(coded, capacities, options, ranks).expert;
}

}  // namespace

MethodComparison compare_methods(const LocalScores<float>& scores, uint64_t first_sequence,
                                 std::span<const int64_t> capacities, AssignOptions options,
                                 const HostCollectives& ranks) {
  options.certify = false;
  MethodComparison comparison;
  Assignment greedy;
  const auto add = [&](const std::string& name, const Assignment& assignment) {
    int64_t differs = 0;
    for (size_t i = 0; i < greedy.size(); ++i) differs += greedy[i] != assignment[i];
    ranks.all_reduce_sum_int64({&differs, 1});
    comparison.methods.push_back(
        {name, assignment_stats(scores, assignment, options.threads, ranks), differs});
  };
  for (const auto method :
       {AssignmentMethod::greedy, AssignmentMethod::margin, AssignmentMethod::optimal}) {
    options.method = method;
    const AssignmentOutcome outcome = assign_sequences(scores, capacities, options, ranks);
    if (method == AssignmentMethod::greedy) greedy = outcome.expert;
    add(to_string(method), outcome.expert);
  }
  add("argmax (not balanced)", argmax_assignment(scores, options.threads));
  add("random", deal_out(scores, first_sequence, capacities));
  add("greedy on 16-bit codes", greedy_on_codes(scores, capacities, options, ranks));
  comparison.bound = dual_bound(scores, capacities, options.threads, ranks).mean_regret;
  return comparison;
}

}  // namespace smalltalk
