#include "smalltalk/core/assignment/greedy_path.hpp"

#include <algorithm>

namespace smalltalk {

GreedyPath greedy_path(const Neighbours& neighbours) {
  const int64_t n = neighbours.size();
  std::vector<bool> used(static_cast<size_t>(n));
  GreedyPath path;
  int64_t smallest = 0;  // no unused point is below it
  while (std::ssize(path.points) < n) {
    while (used[static_cast<size_t>(smallest)]) ++smallest;
    if (smallest > 0) ++path.restarts;
    auto point = static_cast<uint32_t>(smallest);
    while (point != kNoNeighbour) {
      used[point] = true;
      path.points.push_back(point);
      const auto row = neighbours.of(point);
      const auto next =
          std::ranges::find_if(row, [&](uint32_t id) { return id == kNoNeighbour || !used[id]; });
      point = next == row.end() ? kNoNeighbour : *next;
    }
  }
  return path;
}

}  // namespace smalltalk
