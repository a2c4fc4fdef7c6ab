#include "lm/train/gradient_buckets.hpp"

#include <algorithm>

namespace smalltalk {
namespace {

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

int64_t bucket_floats(int64_t given_bytes, int64_t parameters) {
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  const int64_t by_size =
      std::clamp(parameters * kFloat / 100, int64_t{25} << 20, int64_t{256} << 20);
  return (given_bytes > 0 ? given_bytes : by_size) / kFloat;
}

GradientBuckets::GradientBuckets(const ParameterLayout& layout, int group_size,
                                 int64_t bucket_floats)
    : total_(layout.total), padded_(layout.total) {
  if (group_size == 1) {
    buckets_.push_back({0, total_, total_, 0});
    shard_size_ = total_;
    reset();
    return;
  }
  const int64_t unit = kPieceFloats * group_size;
  padded_ = round_up(total_, unit);
  const int64_t step = std::max(unit, bucket_floats / unit * unit);
  // Parts of the buffer, each final as a whole only after those before it in this list. A border
  // that is no multiple of the unit moves, so that what it cuts off is in the later part.
  const int64_t embedding_end = layout.head == layout.embedding ? layout.blocks : layout.head;
  const int64_t head_begin = std::min(round_up(embedding_end, unit), padded_);
  norms_begin_ = std::max(layout.decay_size / unit * unit, head_begin);
  const int64_t blocks_begin = std::clamp(layout.blocks / unit * unit, head_begin, norms_begin_);
  const auto add = [&](int64_t begin, int64_t size, int64_t piece) {
    buckets_.push_back({begin, size, piece, shard_size_});
    shard_size_ += piece;
  };
  const std::pair<int64_t, int64_t> parts[] = {{head_begin, blocks_begin},
                                               {blocks_begin, norms_begin_},
                                               {norms_begin_, padded_},
                                               {layout.sliced, head_begin}};
  for (const auto& [begin, end] : parts) {
    // From the end: that is where the backward pass begins.
    for (int64_t past = end; past > begin;) {
      const int64_t first = std::max(begin, past - step);
      add(first, past - first, (past - first) / group_size);
      past = first;
    }
  }
  if (layout.sliced > 0) add(0, layout.sliced, layout.sliced);
  reset();
}

std::vector<ShardPiece> GradientBuckets::pieces(int rank) const {
  std::vector<ShardPiece> pieces;
  for (const GradientBucket& bucket : buckets_) {
    const int64_t begin = bucket.piece_begin(rank);
    const int64_t size = std::min(bucket.piece, total_ - begin);
    if (size > 0) pieces.push_back({begin, size, bucket.shard_begin});
  }
  return pieces;
}

void GradientBuckets::reset() {
  missing_.clear();
  for (const GradientBucket& bucket : buckets_) {
    // Nobody writes the padding, or announces what is this rank's alone.
    missing_.push_back(bucket.shared() ? std::min(bucket.end(), total_) - bucket.begin : 0);
  }
  next_ = 0;
}

void GradientBuckets::ready(int64_t begin, int64_t end) {
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const GradientBucket& bucket = buckets_[i];
    const int64_t past = bucket.end();
    missing_[i] -= std::max<int64_t>(0, std::min(end, past) - std::max(begin, bucket.begin));
  }
}

}  // namespace smalltalk
