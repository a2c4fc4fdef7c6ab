// Documents of a part of a file, so that several ranks can share one. Private to src/data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "smalltalk/data/documents.hpp"

namespace smalltalk {

enum class FileKind { json_lines, plain_text, unknown };
FileKind kind_of(const std::filesystem::path& path);  // by its name, compression aside

// The lines of `file` that begin in bytes [begin, end). Only JSON lines without compression are
// ever cut; all else is one block.
struct DocumentBlock {
  int64_t file = 0;  // index into the list of files
  int64_t begin = 0;
  int64_t end = 0;
  int64_t bytes() const { return end - begin; }
};

// Cuts files into blocks, in order. A function of the files' names and sizes alone: blocks are the
// unit of resumption, and must not change with the number of ranks.
std::vector<DocumentBlock> cut_into_blocks(const std::vector<std::filesystem::path>& files);

// As read_documents(), of one block. `take` returns false to stop early.
BadDocuments read_block(const std::filesystem::path& file, const DocumentBlock& block,
                        const std::function<bool(const Document&)>& take);

}  // namespace smalltalk
