// Documents from files: JSON lines with a "text" (optionally "domain"), plain text (one document a
// file), folders and globs, .gz and .zst. Streaming: memory does not grow with the corpus.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace smalltalk {

struct Document {
  std::string_view text;
  std::string_view domain;  // empty if the input names none
};

// What was left out, and where it was first seen.
struct BadDocuments {
  int64_t documents = 0;  // read in all, bad ones included
  int64_t bad_utf8 = 0;
  int64_t empty = 0;
  int64_t broken_json = 0;
  std::vector<std::string> examples;  // at most 10: "file:line: reason"
  int64_t bad() const { return bad_utf8 + empty + broken_json; }
  void add(const BadDocuments& other);
};

// Files named by paths, folders (recursive) and globs, in lexicographic order of each input.
// Error: an input that matches nothing, or a file of unknown kind (named).
std::vector<std::filesystem::path> expand_inputs(const std::vector<std::string>& inputs);

// Calls `take` for each good document of one file, in order. Returns what was left out.
BadDocuments read_documents(const std::filesystem::path& file,
                            const std::function<void(const Document&)>& take);

}  // namespace smalltalk
