// A text that models are measured on, as its sequences.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk {

struct MeasuredText {
  TokenFileInfo info;
  int64_t num_sequences = 0;         // N
  std::vector<std::string> domains;  // their names; each text numbers them by itself
  std::vector<uint16_t> domain;      // [N] that holds most of a sequence's tokens
  std::vector<int64_t> targets;      // [N] of a sequence: S, less the padding at its end
};

MeasuredText read_measured_text(const RunLayout& layout, const std::string& split,
                                int64_t seq_length);

// The document that each sequence's first token lies in, or, if `packed`, its first target, as the
// token before ends another document: [N]. A document ends before its end.
std::vector<uint64_t> sequence_documents(std::span<const uint64_t> document_ends,
                                         int64_t num_sequences, int64_t seq_length,
                                         bool packed = false);

}  // namespace smalltalk
