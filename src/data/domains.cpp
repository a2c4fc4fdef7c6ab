// Domain labels: read for reports only, never by what trains or routes.
#include <algorithm>

#include "hdf5_file.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/data/token_file.hpp"
#include "token_format.hpp"

namespace smalltalk {

Domains read_domains(const std::filesystem::path& path) {
  const Hdf5File file = Hdf5File::open(path);
  file.require_format(kTokenFormat);
  Domains domains;
  domains.names = file.read_list("domains");
  domains.of_document = file.read<uint16_t>(kDocumentDomains);
  domains.document_ends = file.read<uint64_t>(kDocumentEnds);
  const bool known = std::all_of(domains.of_document.begin(), domains.of_document.end(),
                                 [&](uint16_t domain) { return domain < domains.names.size(); });
  if (!known || domains.of_document.size() != domains.document_ends.size()) {
    throw Error(path.string() + ": its domain labels do not agree; make it again");
  }
  return domains;
}

std::vector<uint16_t> sequence_domains(const Domains& domains, int64_t num_sequences,
                                       int64_t seq_length) {
  ST_CHECK(seq_length >= 1 && num_sequences >= 0);
  const auto length = static_cast<uint64_t>(seq_length);
  std::vector<uint16_t> result(static_cast<size_t>(num_sequences));
  std::vector<uint64_t> tokens(domains.names.size());  // of each domain, in this sequence
  std::vector<uint16_t> seen;
  size_t document = 0;
  for (size_t i = 0; i < result.size(); ++i) {
    const uint64_t end = (i + 1) * length;
    uint64_t at = i * length;
    while (at < end) {
      ST_CHECK(document < domains.document_ends.size());
      const uint64_t until = std::min(end, domains.document_ends[document]);
      const uint16_t domain = domains.of_document[document];
      if (tokens[domain] == 0) seen.push_back(domain);
      tokens[domain] += until > at ? until - at : 0;
      at = std::max(at, until);
      if (domains.document_ends[document] <= at) ++document;
    }
    std::sort(seen.begin(), seen.end());  // ties go to the lower index
    uint16_t best = seen.front();
    for (const uint16_t domain : seen) {
      if (tokens[domain] > tokens[best]) best = domain;
    }
    result[i] = best;
    for (const uint16_t domain : seen) tokens[domain] = 0;
    seen.clear();
  }
  return result;
}

}  // namespace smalltalk
