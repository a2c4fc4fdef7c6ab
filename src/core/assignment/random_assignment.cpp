#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/system/random.hpp"

namespace smalltalk {

Assignment random_assignment(int64_t num_sequences, int64_t num_experts, uint64_t seed) {
  balanced_capacities(num_sequences, num_experts);  // for its checks
  Assignment assignment(static_cast<size_t>(num_sequences));
  if (num_sequences == 0) return assignment;
  // Places in a shuffled order, dealt out like cards: the first N mod E experts get one more.
  const Permutation place(static_cast<uint64_t>(num_sequences),
                          derive_seed(seed, "random assignment"));
  for (size_t sequence = 0; sequence < assignment.size(); ++sequence) {
    assignment[sequence] =
        static_cast<uint16_t>(place(sequence) % static_cast<uint64_t>(num_experts));
  }
  return assignment;
}

}  // namespace smalltalk
