// The largest total of an assignment, by somebody else's code.
#pragma once

#include <cstdint>
#include <span>

namespace smalltalk {

// values [N, E], capacities [E] with the sum N. REQUIRES that LEMON was there when the tests were
// built; has_exact_transport says so.
extern const bool has_exact_transport;
int64_t exact_transport(std::span<const int64_t> values, std::span<const int64_t> capacities);

}  // namespace smalltalk
