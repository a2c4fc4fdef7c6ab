#include <string>
#include <vector>

#include "smalltalk/comm/rank_plan.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

constexpr size_t kRanksShownSingly = 32;

// "0", "0-3", "0 4 8 ... 28 (8)".
std::string list(const std::vector<int>& numbers) {
  if (numbers.empty()) return "-";
  const auto count = static_cast<int>(numbers.size());
  if (count > 1 && numbers.back() - numbers.front() == count - 1) {
    return std::to_string(numbers.front()) + "-" + std::to_string(numbers.back());
  }
  std::string text = std::to_string(numbers.front());
  const bool cut = count > 5;
  for (int i = 1; i < (cut ? 3 : count); ++i) {
    text.append(" ").append(std::to_string(numbers[static_cast<size_t>(i)]));
  }
  if (cut) {
    text.append(" ... ").append(std::to_string(numbers.back()));
    text.append(" (").append(std::to_string(count)).append(")");
  }
  return text;
}

std::string range(size_t first, size_t last) {
  const std::string text = std::to_string(first);
  return first == last ? text : text + "-" + std::to_string(last);
}

// Ranks that do the same work, but for their place in it.
bool equal_work(const RankRole& a, const RankRole& b) {
  return a.node == b.node && a.scores_routers == b.scores_routers &&
         a.score_parts == b.score_parts && a.group == b.group;
}

using Row = std::vector<std::string>;

Row row_of(const RankPlan& plan, size_t first, size_t last) {
  const RankRole& role = plan.ranks[first];
  const RankRole& end = plan.ranks[last];
  std::string part;
  if (role.score_parts > 1) {
    part = " part " +
           range(static_cast<size_t>(role.score_part), static_cast<size_t>(end.score_part)) +
           " of " + std::to_string(role.score_parts);
  }
  std::string group = "spare";
  if (role.group >= 0) {
    group = std::to_string(role.group);
    if (plan.group_size > 1) {
      group += " rank " +
               range(static_cast<size_t>(role.group_rank), static_cast<size_t>(end.group_rank));
    }
  }
  // Only the first rank of a block trains its router.
  return {range(first, last),
          std::to_string(role.node),
          list(role.trains_routers),
          list(role.scores_routers) + part,
          group,
          list(role.experts)};
}

std::string counted(int count, const std::string& noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

}  // namespace

std::string to_string(const RankPlan& plan) {
  const bool fold = plan.ranks.size() > kRanksShownSingly;
  std::vector<Row> rows = {
      Row{"rank", "node", "trains router", "scores with router", "group", "experts"}};
  for (size_t first = 0; first < plan.ranks.size();) {
    size_t last = first;
    while (fold && last + 1 < plan.ranks.size() &&
           equal_work(plan.ranks[first], plan.ranks[last + 1])) {
      ++last;
    }
    rows.push_back(row_of(plan, first, last));
    first = last + 1;
  }

  std::string text = counted(plan.num_experts, "expert") + ", " +
                     counted(static_cast<int>(plan.ranks.size()), "rank") + " on " +
                     counted(plan.num_nodes, "node") + ": " + counted(plan.num_groups, "group") +
                     " of " + counted(plan.group_size, "rank") + ", " +
                     std::to_string(plan.spare.size()) + " spare\n";
  return text + aligned(rows);
}

}  // namespace smalltalk
