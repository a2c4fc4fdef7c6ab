#include "mixture/evaluation/measured_text.hpp"

#include <algorithm>

namespace smalltalk {

MeasuredText read_measured_text(const RunLayout& layout, const std::string& split,
                                int64_t seq_length) {
  const TokenFile tokens(layout.tokens(split));
  const Domains domains = read_domains(layout.tokens(split));
  const int64_t n = tokens.num_sequences(seq_length);
  return {tokens.info(), n, domains.names, sequence_domains(domains, n, seq_length)};
}

std::vector<uint64_t> sequence_documents(std::span<const uint64_t> document_ends,
                                         int64_t num_sequences, int64_t seq_length) {
  std::vector<uint64_t> documents;
  for (int64_t i = 0; i < num_sequences; ++i) {
    const auto first = static_cast<uint64_t>(i * seq_length);
    const auto document = std::ranges::upper_bound(document_ends, first) - document_ends.begin();
    documents.push_back(static_cast<uint64_t>(document));
  }
  return documents;
}

}  // namespace smalltalk
