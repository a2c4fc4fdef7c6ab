// An order in which neighbours are alike: the path of In-Context Pretraining (Shi et al., ICLR
// 2024), by which Lory (Zhong et al., 2024) puts similar documents into one training sequence.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace smalltalk {

inline constexpr uint32_t kNoNeighbour = UINT32_MAX;

// Nearest neighbours of each of n points, [n, count], the nearest first; kNoNeighbour fills the
// rows of points that have less. An id is a point's place.
struct Neighbours {
  std::vector<uint32_t> ids;
  int64_t count = 0;

  int64_t size() const { return count == 0 ? 0 : std::ssize(ids) / count; }
  std::span<const uint32_t> of(int64_t point) const {
    return std::span(ids).subspan(static_cast<size_t>(point * count), static_cast<size_t>(count));
  }
};

struct GreedyPath {
  std::vector<uint64_t> points;  // each once
  int64_t restarts = 0;          // where the path broke off
};

// Begins with point 0 and goes on to the nearest neighbour of the last point that is not yet on the
// path. Where all of them are, it begins anew with the unused point of the smallest id.
GreedyPath greedy_path(const Neighbours& neighbours);

}  // namespace smalltalk
