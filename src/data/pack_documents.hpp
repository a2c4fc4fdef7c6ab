// Best-fit packing of documents into sequences without cutting any that fits into one (after Ding
// et al., "Fewer Truncations Improve Language Modeling"): every sequence begins with a document, or
// goes on with the one of the sequence before.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace smalltalk {

struct PackedDocument {
  int64_t document = 0;
  int64_t padding = 0;  // tokens behind it, until the next one begins
};

// An order of documents of these lengths (tokens, end token included) for sequences of seq_length
// tokens, beginning and ending with a whole sequence. The longest that is left begins a sequence;
// whatever is free behind its end goes to the longest that fits, again and again, and at last to
// padding. Ties go by the number of the document.
std::vector<PackedDocument> pack_documents(std::span<const int64_t> lengths, int64_t seq_length);

}  // namespace smalltalk
