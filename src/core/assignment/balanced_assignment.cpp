#include "smalltalk/core/assignment/balanced_assignment.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>

#include "core/assignment/row_pieces.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"

namespace smalltalk {
namespace {

constexpr std::array<std::pair<AssignmentMethod, const char*>, 5> kMethods = {{
    {AssignmentMethod::greedy, "greedy"},
    {AssignmentMethod::margin, "margin"},
    {AssignmentMethod::optimal, "optimal"},
    {AssignmentMethod::argmax, "argmax"},
    {AssignmentMethod::random, "random"},
}};

}  // namespace

std::string to_string(AssignmentMethod method) {
  for (const auto& [value, name] : kMethods) {
    if (value == method) return name;
  }
  throw Error("internal error: an assignment method without a name");
}

AssignmentMethod assignment_method(const std::string& name) {
  std::string known;
  for (const auto& [value, its_name] : kMethods) {
    if (name == its_name) return value;
    known += std::string(known.empty() ? "" : ", ") + its_name;
  }
  throw Error("there is no assignment method '" + name + "'; there are " + known);
}

std::vector<int64_t> balanced_capacities(int64_t num_sequences, int64_t num_experts) {
  if (num_experts < 1 || num_experts > std::numeric_limits<uint16_t>::max()) {
    throw Error("there must be 1 to 65535 experts, not " + std::to_string(num_experts));
  }
  if (num_sequences < 0) throw Error("a number of sequences cannot be negative");
  std::vector<int64_t> capacities(static_cast<size_t>(num_experts), num_sequences / num_experts);
  for (int64_t expert = 0; expert < num_sequences % num_experts; ++expert) {
    ++capacities[static_cast<size_t>(expert)];
  }
  return capacities;
}

std::vector<int64_t> shared_capacities(int64_t num_sequences, int64_t num_experts,
                                       std::span<const double> shares) {
  if (shares.empty()) return balanced_capacities(num_sequences, num_experts);
  if (static_cast<int64_t>(shares.size()) != num_experts) {
    throw Error(std::to_string(shares.size()) + " shares given for " + std::to_string(num_experts) +
                " experts");
  }
  double total = 0;
  for (const double share : shares) {
    if (!(share > 0) || !std::isfinite(share))
      throw Error("the shares of experts must be positive");
    total += share;
  }
  std::vector<int64_t> capacities;
  std::vector<std::pair<double, size_t>> remainders;  // negative, so that they sort largest first
  int64_t left = num_sequences;
  for (size_t e = 0; e < shares.size(); ++e) {
    const double exact = static_cast<double>(num_sequences) * (shares[e] / total);
    capacities.push_back(static_cast<int64_t>(exact));
    remainders.emplace_back(static_cast<double>(capacities.back()) - exact, e);
    left -= capacities.back();
  }
  std::sort(remainders.begin(), remainders.end());
  for (size_t i = 0; left > 0; ++i, --left) ++capacities[remainders[i % remainders.size()].second];
  for (size_t i = 0; left < 0; ++i, ++left) --capacities[remainders[i % remainders.size()].second];
  return capacities;
}

int64_t require_capacities(std::span<const int64_t> capacities, int64_t num_experts,
                           int64_t local_rows, const HostCollectives& ranks) {
  if (static_cast<int64_t>(capacities.size()) != num_experts) {
    throw Error(std::to_string(capacities.size()) + " capacities given for " +
                std::to_string(num_experts) + " experts");
  }
  for (size_t e = 0; e < capacities.size(); ++e) {
    if (capacities[e] < 0) {
      throw Error("the capacity of expert " + std::to_string(e) + " is " +
                  std::to_string(capacities[e]) + ", below 0");
    }
  }
  int64_t rows = local_rows;
  ranks.all_reduce_sum_int64({&rows, 1});
  const int64_t room = std::accumulate(capacities.begin(), capacities.end(), int64_t{0});
  if (rows != room) {
    throw Error("the capacities of the experts sum to " + std::to_string(room) +
                ", but there are " + std::to_string(rows) + " sequences to assign");
  }
  return rows;
}

std::vector<int64_t> room_beside(std::span<const int64_t> counts, std::vector<int64_t> capacities) {
  ST_CHECK(counts.size() == capacities.size());
  for (size_t e = 0; e < counts.size(); ++e) {
    if (counts[e] > capacities[e]) {
      throw Error("expert " + std::to_string(e) + " keeps " + std::to_string(counts[e]) +
                  " sequences, more than its new capacity of " + std::to_string(capacities[e]) +
                  ": assign all anew (without --append), or give it a larger share");
    }
    capacities[e] -= counts[e];
  }
  return capacities;
}

void require_no_empty_shard(std::span<const int64_t> counts, const std::string& where) {
  const auto empty = std::find(counts.begin(), counts.end(), 0);
  if (empty == counts.end()) return;
  throw Error("expert " + std::to_string(empty - counts.begin()) + " has no sequence in " + where +
              ": choose a balanced assignment, fewer experts, or more text");
}

Assignment balanced_assignment(const ScoreMatrix& scores) {
  const LocalScores<float> all = local_scores(scores);
  const auto capacities = balanced_capacities(scores.num_sequences(), scores.num_experts());
  const int threads = available_cores();
  return apply_rule(all, balanced_rule(all, capacities, AssignmentMethod::greedy, threads), threads)
      .expert;
}

Assignment argmax_assignment(const ScoreMatrix& scores) {
  return argmax_assignment(local_scores(scores));
}

}  // namespace smalltalk
