#include "pack_documents.hpp"

#include <functional>
#include <map>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

std::vector<PackedDocument> pack_documents(std::span<const int64_t> lengths, int64_t seq_length) {
  // Numbers by length, the longest first; of one length the last is taken first.
  std::map<int64_t, std::vector<int64_t>, std::greater<>> left;
  for (int64_t i = std::ssize(lengths) - 1; i >= 0; --i) {
    ST_CHECK(lengths[static_cast<size_t>(i)] > 0);
    left[lengths[static_cast<size_t>(i)]].push_back(i);
  }
  std::vector<PackedDocument> order;
  order.reserve(lengths.size());
  int64_t free = 0;  // of the sequence in work
  while (!left.empty()) {
    auto fitting = free == 0 ? left.begin() : left.lower_bound(free);
    if (fitting == left.end()) {
      order.back().padding = free;
      free = 0;
      fitting = left.begin();
    }
    auto& [length, documents] = *fitting;
    order.push_back({documents.back(), 0});
    // Beginning or not, what is free behind it is what its last sequence has left.
    free = ((free - length) % seq_length + seq_length) % seq_length;
    documents.pop_back();
    if (documents.empty()) left.erase(fitting);
  }
  if (!order.empty()) order.back().padding = free;
  return order;
}

}  // namespace smalltalk
