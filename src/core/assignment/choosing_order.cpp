#include "core/assignment/choosing_order.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <utility>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

// Sorts by the high 32 bits; equals keep their order. Radix sort of as many 11-bit digits as the
// ranks differ in: one for equal scores, two for 16-bit codes, three for floats.
void sort_by_rank(std::vector<uint64_t>& words) {
  constexpr int kDigitBits = 11;
  uint64_t least = ~uint64_t{0};
  uint64_t most = 0;
  for (const uint64_t word : words) {
    least = std::min(least, word >> 32);
    most = std::max(most, word >> 32);
  }
  std::vector<uint64_t> sorted(words.size());
  for (int shift = 0; shift < static_cast<int>(std::bit_width(most - least)); shift += kDigitBits) {
    const auto digit = [&](uint64_t word) {
      return ((word >> 32) - least) >> shift & ((1U << kDigitBits) - 1);
    };
    std::array<uint32_t, size_t{1} << kDigitBits> next{};
    for (const uint64_t word : words) ++next[digit(word)];
    uint32_t before = 0;
    for (uint32_t& count : next) before += std::exchange(count, before);
    for (const uint64_t word : words) sorted[next[digit(word)]++] = word;
    words.swap(sorted);
  }
}

}  // namespace

template <typename Score>
ChoosingOrder<Score>::ChoosingOrder(const RowPiece<Score>& rows, bool by_margin)
    : rows_(rows),
      experts_(static_cast<int64_t>(rows.values.size()) / rows.num_rows),
      stride_(std::max<int64_t>(1024, experts_)) {
  ST_CHECK(rows.num_rows <= kMaxRows);
  std::vector<uint16_t> best(static_cast<size_t>(rows.num_rows));
  const std::vector<uint32_t> ranks = rows::rank_piece(rows, by_margin, best.data());
  order_.resize(ranks.size());
  for (size_t row = 0; row < ranks.size(); ++row) order_[row] = uint64_t{ranks[row]} << 32 | row;
  sort_by_rank(order_);
  choice_.resize(order_.size());
  for (size_t place = 0; place < order_.size(); ++place) {
    choice_[place] = best[order_[place] & 0xFFFFFFFFU];
  }
}

template <typename Score>
int64_t ChoosingOrder<Score>::place_after(const OrderKey& key) const {
  const uint64_t rank = uint64_t{key.rank} << 32;
  uint64_t last = rank;  // the largest word that does not come after the key
  if (key.sequence >= rows_.first_sequence) {
    last |= std::min<uint64_t>(key.sequence - rows_.first_sequence, 0xFFFFFFFFU);
  } else if (rank == 0) {
    return 0;
  } else {
    last -= 1;
  }
  return std::upper_bound(order_.begin(), order_.end(), last) - order_.begin();
}

template <typename Score>
void ChoosingOrder<Score>::choose_until(int64_t place, std::span<const int32_t> closed_after,
                                        int32_t time) {
  if (place <= known_) return;
  // Those whose expert has closed choose again. The next one to be found overwrites what was no
  // find: a branch would be guessed wrong half of the time.
  const auto asked = static_cast<size_t>(place - known_);
  std::vector<uint32_t> places(asked);
  std::vector<uint32_t> row_of(asked);
  size_t found = 0;
  for (auto i = static_cast<size_t>(known_); i < static_cast<size_t>(place); ++i) {
    places[found] = static_cast<uint32_t>(i);
    row_of[found] = static_cast<uint32_t>(order_[i]);
    found += closed_after[choice_[i]] < time;
  }
  row_of.resize(found);
  std::vector<uint16_t> next(found);
  const std::vector<int32_t> times(found, time);
  rows::choose_rows(rows_.values.data(), row_of, times.data(), closed_after, next.data());
  for (size_t i = 0; i < found; ++i) choice_[places[i]] = next[i];
  count_until(place);
}

template <typename Score>
void ChoosingOrder<Score>::count_until(int64_t place) {
  const auto width = static_cast<size_t>(experts_);
  counts_.resize(static_cast<size_t>(place / stride_ + 1) * width);
  for (int64_t line = known_ / stride_; line < place / stride_; ++line) {
    uint32_t* here = counts_.data() + static_cast<size_t>(line) * width;
    std::copy_n(here, width, here + width);
    for (int64_t i = line * stride_; i < (line + 1) * stride_; ++i) {
      ++here[width + choice_[static_cast<size_t>(i)]];
    }
  }
  known_ = place;
}

template <typename Score>
void ChoosingOrder<Score>::count_choices(int64_t place, std::span<int64_t> counts) const {
  const int64_t line = place / stride_;
  const uint32_t* before = counts_.data() + line * experts_;
  if (!counts_.empty()) {
    for (size_t e = 0; e < counts.size(); ++e) counts[e] += before[e];
  }
  for (int64_t i = line * stride_; i < place; ++i) ++counts[choice_[static_cast<size_t>(i)]];
}

template <typename Score>
void ChoosingOrder<Score>::forget_from(int64_t place) {
  known_ = std::min(known_, place);
}

template class ChoosingOrder<float>;
template class ChoosingOrder<uint16_t>;

}  // namespace smalltalk
