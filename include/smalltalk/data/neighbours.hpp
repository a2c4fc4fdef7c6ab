// The nearest neighbours of vectors among each other, by FAISS.
#pragma once

#include <cstdint>
#include <span>

#include "smalltalk/core/assignment/greedy_path.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

struct NeighbourOptions {
  int64_t count = 20;  // of each vector at most
  // From so many vectors on, each is compared only with those of the cells (IndexIVFFlat) whose
  // centres it is most similar to.
  int64_t exact_below = 100'000;
  int64_t probed_cells = 16;
  uint64_t seed = 0;
  int threads = 1;
};

// `vectors` [n, dimensions], the same on all ranks, each of length 1 or 0. Neighbours are those
// with the largest inner products above 0, ties by id, without the vector itself. Each rank
// compares a share of the vectors; the result is on rank 0, and empty on the others. The same for
// any number of ranks and threads. Holds another 4 d n bytes, and for its share 12 bytes a
// neighbour and probed cell. Collective. Throws Stopped, on all ranks, if one of them is asked to
// stop.
Neighbours nearest_neighbours(std::span<const float> vectors, int64_t dimensions,
                              const NeighbourOptions& options, const HostCollectives& ranks);

}  // namespace smalltalk
