// The tokens of one part of the inputs, on their way into tokens.h5. Written by one rank, joined
// by rank 0, then removed. Layout: tokens, document ends (uint64, from the part's start), document
// domains (uint32, into the part's own list), then what the trailer says as JSON, its length, its
// XXH3, and a mark. Private to src/data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "input_part.hpp"
#include "smalltalk/data/tokenizer.hpp"

namespace smalltalk {

struct PartInfo {
  int64_t num_tokens = 0;
  int64_t num_documents = 0;
  int64_t text_bytes = 0;
  int64_t token_bytes = 2;
  std::vector<std::string> domains;       // in the order first seen; "" is the unknown one
  std::vector<int64_t> domain_documents;  // how many documents each has
  BadDocuments bad;
  std::vector<std::vector<uint64_t>> sources;  // hashes_of() each part of the inputs
  std::string content_hash;                    // of all before the trailer
};

// Tokenises parts of the inputs, one behind the other, into a file, written atomically.
PartInfo write_part(const std::filesystem::path& part_file,
                    const std::vector<std::filesystem::path>& inputs,
                    std::span<const InputPart> parts, const DocumentFields& fields,
                    const Tokenizer& tokenizer);

// Nothing if there is no whole part file at that place.
std::optional<PartInfo> read_part_info(const std::filesystem::path& part_file);

// Error if what lies before the trailer is not what was written; then the file is removed, so that
// the next run makes it again.
void require_whole(const std::filesystem::path& part_file, const PartInfo& info);

// Reads values behind `offset` bytes of the file.
template <typename T>
void read_part_values(const std::filesystem::path& part_file, int64_t offset, std::span<T> values);

}  // namespace smalltalk
