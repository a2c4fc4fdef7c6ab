#include <fmt/format.h>
#include <glob.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "byte_reader.hpp"
#include "input_part.hpp"
#include "line_reader.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;
using Paths = std::vector<fs::path>;

constexpr const char* kKinds = ".jsonl, .ndjson, .json or .txt, each also with .gz or .zst";

bool by_name(const fs::path& a, const fs::path& b) { return a.native() < b.native(); }

// The files of one input, each once.
class Expansion {
 public:
  explicit Expansion(InputFiles& into) : into_(into) {}

  void add(const std::string& input) {
    // A name that exists is meant as it is, brackets and all.
    const Paths named = fs::exists(input) ? Paths{fs::path(input)} : matches_of(input);
    if (named.empty()) throw Error(input + ": no such file or folder, and no file matches it");
    for (const fs::path& path : named) {
      if (fs::is_directory(path)) {
        add_folder(path);
      } else if (kind_of(path) == FileKind::unknown) {
        throw Error(path.string() + ": unknown kind of file; inputs are " + kKinds);
      } else {
        add_file(path);
      }
    }
    if (files_.empty()) throw Error(input + ": holds no file that is " + kKinds);
    std::sort(files_.begin(), files_.end(), by_name);
    into_.files.insert(into_.files.end(), files_.begin(), files_.end());
  }

 private:
  static Paths matches_of(const std::string& pattern) {
    if (pattern.find("**") != std::string::npos) {
      throw Error(pattern +
                  ": ** stands for one folder only; name the folder above instead, which is "
                  "read with all that lies below it");
    }
    glob_t result{};
    const int code = ::glob(pattern.c_str(), 0, nullptr, &result);
    Paths found;
    for (size_t i = 0; i < result.gl_pathc; ++i) found.emplace_back(result.gl_pathv[i]);
    ::globfree(&result);
    if (code != 0 && code != GLOB_NOMATCH) throw Error(pattern + ": cannot be searched");
    return found;
  }

  void add_file(const fs::path& path) {
    if (is_new(path)) files_.push_back(path);
  }

  // Whether no name or link led to it before.
  bool is_new(const fs::path& path) {
    struct stat found {};
    if (::stat(path.c_str(), &found) != 0) {
      throw Error(path.string() + ": cannot be read: " + std::strerror(errno));
    }
    return seen_.insert({found.st_dev, found.st_ino}).second;
  }

  // In the order of names, so that of two ways to a file always the same is taken.
  void add_folder(const fs::path& folder) {
    if (!is_new(folder)) return;
    Paths entries;
    for (const auto& entry : fs::directory_iterator(folder)) entries.push_back(entry.path());
    std::sort(entries.begin(), entries.end(), by_name);
    for (const fs::path& path : entries) {
      if (path.filename().string().starts_with('.')) continue;
      std::error_code broken;  // a link to nothing, or to itself
      if (fs::is_directory(path, broken)) {
        add_folder(path);
      } else if (kind_of(path) != FileKind::unknown && fs::is_regular_file(path, broken)) {
        add_file(path);
      } else if (left_out_.insert(path).second) {
        ++into_.left_out[path.extension().string()];
      }
    }
  }

  InputFiles& into_;
  Paths files_;
  std::set<std::pair<dev_t, ino_t>> seen_;
  std::set<fs::path> left_out_;
};

bool is_padding(char c) { return c == ' ' || c == '\t' || c == '\r'; }

// Those of a file that are not blank, without blanks around them, with their numbers.
std::vector<std::pair<int64_t, std::string>> lines_of(const fs::path& file) {
  std::vector<std::pair<int64_t, std::string>> lines;
  LineReader reader(ReadAhead(open_bytes(file), file, 0));
  for (int64_t number = 1; const auto line = reader.next(); ++number) {
    std::string_view text = *line;
    if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
    while (!text.empty() && is_padding(text.back())) text.remove_suffix(1);
    while (!text.empty() && is_padding(text.front())) text.remove_prefix(1);
    if (!text.empty()) lines.emplace_back(number, text);
  }
  if (lines.empty()) throw Error(file.string() + ": names no file");
  return lines;
}

}  // namespace

FileKind kind_of(const fs::path& path) {
  const std::string extension = lower_extension(without_compression(path));
  for (const char* known : {".jsonl", ".ndjson", ".json", ".jsonlines", ".jl"}) {
    if (extension == known) return FileKind::json;
  }
  for (const char* known : {".txt", ".text"}) {
    if (extension == known) return FileKind::plain_text;
  }
  return FileKind::unknown;
}

fs::path without_compression(const fs::path& path) {
  return is_compressed(path) ? path.parent_path() / path.stem() : path;
}

bool is_compressed(const fs::path& path) { return compression_of(path) != Compression::none; }

std::string describe(const Counts& counts) {
  std::string text;
  for (const auto& [name, count] : counts) {
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count,
                        name.empty() ? "without an extension" : name);
  }
  return text;
}

int64_t unpacked_bytes(const Paths& files) {
  int64_t bytes = 0;
  for (const fs::path& file : files) {
    bytes += static_cast<int64_t>(fs::file_size(file)) * (is_compressed(file) ? 4 : 1);
  }
  return bytes;
}

void refuse_left_out(const InputFiles& inputs, double max_bad_fraction) {
  int64_t left_out = 0;
  for (const auto& [extension, count] : inputs.left_out) left_out += count;
  const auto all = static_cast<double>(left_out + std::ssize(inputs.files));
  if (static_cast<double>(left_out) <= max_bad_fraction * all) return;
  throw Error(fmt::format(
      "{} of {} files in the folders cannot be read as text ({}), more than the share of {} that "
      "data.max_bad_fraction allows. What is read is {}. Name the files (as in 'text/*.jsonl'), or "
      "raise it",
      left_out, all, describe(inputs.left_out), max_bad_fraction, kKinds));
}

InputFiles expand_inputs(const std::vector<std::string>& inputs) {
  InputFiles result;
  for (const std::string& input : inputs) {
    const bool is_list = input.starts_with('@') && !fs::exists(input);
    if (!is_list) {
      Expansion(result).add(input);
      continue;
    }
    const std::string list = input.substr(1);
    for (const auto& [number, name] : lines_of(list)) {
      try {
        Expansion(result).add(name);
      } catch (const Error& error) {
        throw Error(fmt::format("{}:{}: {}", list, number, error.what()));
      }
    }
  }
  return result;
}

}  // namespace smalltalk
