// The sequences of one process in the order in which they choose, and what they choose, as far as
// anybody asked. Private to core.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "core/assignment/row_kernels.hpp"
#include "core/assignment/row_pieces.hpp"

namespace smalltalk {

// Up to 2^20 consecutive rows. Places are positions in the order.
template <typename Score>
class ChoosingOrder {
 public:
  static constexpr int64_t kMaxRows = int64_t{1} << 20;

  // Ranks and sorts. Error naming sequence and expert if a score is not finite. The scores must
  // outlive it.
  ChoosingOrder(const RowPiece<Score>& rows, bool by_margin);

  uint64_t first_sequence() const { return rows_.first_sequence; }
  int64_t num_rows() const { return static_cast<int64_t>(order_.size()); }
  uint32_t first_rank() const { return static_cast<uint32_t>(order_.front() >> 32); }
  uint32_t last_rank() const { return static_cast<uint32_t>(order_.back() >> 32); }

  // How many of its sequences come up to and including `key`.
  int64_t place_after(const OrderKey& key) const;
  // Sequences before `place` of which nobody knows what they choose.
  int64_t unknown_before(int64_t place) const { return std::max<int64_t>(0, place - known_); }
  // Finds what the first `place` sequences choose after `time` closings, see row_kernels.hpp.
  void choose_until(int64_t place, std::span<const int32_t> closed_after, int32_t time);
  // counts[e] += sequences before `place` that choose e. REQUIRES choose_until(place).
  void count_choices(int64_t place, std::span<int64_t> counts) const;
  // An expert closed: what the sequences from `place` on choose is not known any more.
  void forget_from(int64_t place);

 private:
  void count_until(int64_t place);

  RowPiece<Score> rows_;
  int64_t experts_;
  int64_t stride_;               // places between two lines of counts_
  std::vector<uint64_t> order_;  // [rows] rank << 32 | row, ascending
  int64_t known_ = 0;            // places whose choice is up to date
  // [rows] by place: the best expert among those that were open when it was worked out, and as long
  // as it is open itself, the best one.
  std::vector<uint16_t> choice_;
  std::vector<uint32_t> counts_;  // [known / stride + 1, E] choices before place i * stride
};

}  // namespace smalltalk
