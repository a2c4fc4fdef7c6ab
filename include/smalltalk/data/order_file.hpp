// order.h5: in which order the documents of a token file are to be read. Ids only; no token is
// copied. Format (version 2, with checksums, see data/README.md):
//   /documents uint64 [num_documents]  ids, each once
//   attributes: format, version, content_hash, and provenance as text (tokens, made_by, restarts)
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/core/system/provenance.hpp"

namespace smalltalk {

struct DocumentOrder {
  std::vector<uint64_t> documents;
  std::string content_hash;  // of the documents, and of nothing else
  Provenance provenance;
};

// Written under a temporary name, flushed, renamed.
void write_order(const std::filesystem::path& path, const std::vector<uint64_t>& documents,
                 const Provenance& provenance);
// Error: missing, not an order, damaged, not each document once.
DocumentOrder read_order(const std::filesystem::path& path);

}  // namespace smalltalk
