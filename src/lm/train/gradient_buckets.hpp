// How the flat buffer of gradients is cut into buckets, each of which a group reduces by one call,
// and when. Contiguous ranges, in the order in which a backward pass finishes them: the output
// projection, the blocks from the last to the first, the norms, the embedding. The order is the
// same on every rank, whatever its engine says first. Within a bucket rank r owns the r-th of equal
// pieces.
#pragma once

#include <cstdint>
#include <vector>

#include "lm/model/parameter_layout.hpp"

namespace smalltalk {

struct GradientBucket {
  int64_t begin = 0;
  int64_t size = 0;
  int64_t piece = 0;        // floats that each rank owns
  int64_t shard_begin = 0;  // of the own piece among all own pieces

  // Else it is this rank's alone: experts of which the others have other slices.
  bool shared() const { return piece < size; }
  int64_t piece_begin(int rank) const { return shared() ? begin + rank * piece : begin; }
  int64_t end() const { return begin + size; }
};

// What one rank owns: [begin, begin + size) of a flat buffer, which lies at `shard_begin` of the
// rank's shard.
struct ShardPiece {
  int64_t begin = 0;
  int64_t size = 0;
  int64_t shard_begin = 0;
};

// Of a bucket: what is given, in bytes, or, for 0, by the model's size: some hundred calls, however
// large it is.
int64_t bucket_floats(int64_t given_bytes, int64_t parameters);

class GradientBuckets {
 public:
  // Buckets of at most `bucket_floats`. A group of one has one bucket and no padding. Slices of
  // experts are one bucket more, behind all others.
  GradientBuckets(const ParameterLayout& layout, int group_size, int64_t bucket_floats);

  // Length of the buffer: the layout's, padded so that every bucket divides into pieces.
  int64_t padded() const { return padded_; }
  // Of what this rank owns, its part of the padding included.
  int64_t shard_size() const { return shard_size_; }
  const std::vector<GradientBucket>& all() const { return buckets_; }
  // All that this rank owns but padding, which is nobody's.
  std::vector<ShardPiece> pieces(int rank) const;
  // Where the buckets of norm weights begin, with what little of the matrices is before them.
  int64_t norms_begin() const { return norms_begin_; }

  // The gradients of [begin, end) are final. Each index is named once between calls of reset().
  void ready(int64_t begin, int64_t end);
  // Whether all gradients of the next bucket in order are final.
  bool next_is_ready() const { return !all_popped() && missing_[next_] == 0; }
  bool all_popped() const { return next_ == buckets_.size(); }
  const GradientBucket& pop() { return buckets_[next_++]; }
  // Begins the next step.
  void reset();

 private:
  int64_t total_, padded_, shard_size_ = 0, norms_begin_ = 0;
  std::vector<GradientBucket> buckets_;
  std::vector<int64_t> missing_;  // floats of each bucket that are not final
  size_t next_ = 0;
};

}  // namespace smalltalk
