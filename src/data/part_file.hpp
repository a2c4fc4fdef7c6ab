// The tokens of one part of the inputs, on their way into tokens.h5. Written by one rank, joined
// by rank 0, then removed. Layout: tokens, document ends (uint64, from the part's start), document
// domains (uint16, into the part's own list), then what the trailer says as JSON, its length, its
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
  std::vector<std::string> domains;  // in the order first seen; "" is the unknown one
  BadDocuments bad;
  std::string content_hash;  // of all before the trailer
};

// Tokenises a part into its file, written atomically.
PartInfo write_part(const std::filesystem::path& part_file, const std::filesystem::path& input,
                    const InputPart& part, const Tokenizer& tokenizer);

// Nothing if there is no whole part file at that place.
std::optional<PartInfo> read_part_info(const std::filesystem::path& part_file);

// Error if what lies before the trailer is not what was written; then the file is removed, so that
// the next run makes it again.
void require_whole(const std::filesystem::path& part_file, const PartInfo& info);

// Reads values behind `offset` bytes of the file.
template <typename T>
void read_part_values(const std::filesystem::path& part_file, int64_t offset, std::span<T> values);

}  // namespace smalltalk
