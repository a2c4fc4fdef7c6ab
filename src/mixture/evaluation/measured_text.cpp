#include "mixture/evaluation/measured_text.hpp"

#include <algorithm>

namespace smalltalk {

namespace {

std::vector<int64_t> targets_of_sequences(const TokenFile& tokens, int64_t n, int64_t seq_length) {
  std::vector<int64_t> targets(static_cast<size_t>(n), seq_length);
  if (tokens.info().packed_length == 0) return targets;
  std::vector<int64_t> row(static_cast<size_t>(seq_length + 1));
  for (int64_t i = 0; i < n; ++i) {
    tokens.read(i * seq_length, row);
    int64_t& count = targets[static_cast<size_t>(i)];
    const auto ends = [&](int64_t t) {
      return row[static_cast<size_t>(t)] == tokens.info().end_token;
    };
    while (count > 0 && ends(count) && ends(count - 1)) --count;
  }
  return targets;
}

}  // namespace

MeasuredText read_measured_text(const RunLayout& layout, const std::string& split,
                                int64_t seq_length) {
  const TokenFile tokens(layout.tokens(split));
  const Domains domains = read_domains(layout.tokens(split));
  const int64_t n = tokens.num_sequences(seq_length);
  return {tokens.info(), n, domains.names, sequence_domains(domains, n, seq_length),
          targets_of_sequences(tokens, n, seq_length)};
}

std::vector<uint64_t> sequence_documents(std::span<const uint64_t> document_ends,
                                         int64_t num_sequences, int64_t seq_length, bool packed) {
  std::vector<uint64_t> documents;
  for (int64_t i = 0; i < num_sequences; ++i) {
    const auto first = static_cast<uint64_t>(i * seq_length + (packed ? 1 : 0));
    const auto document = std::ranges::upper_bound(document_ends, first) - document_ends.begin();
    documents.push_back(static_cast<uint64_t>(document));
  }
  return documents;
}

}  // namespace smalltalk
