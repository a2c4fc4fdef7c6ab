#include <fmt/format.h>
#include <glob.h>

#include <algorithm>

#include "input_part.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

using Paths = std::vector<std::filesystem::path>;

constexpr const char* kKinds = ".jsonl, .ndjson or .txt, each also with .gz or .zst";

// A folder may hold notes and checksums beside the text: those are skipped, aloud. A file that was
// named is not.
Paths files_in(const std::filesystem::path& folder) {
  Paths found;
  Paths skipped;
  const auto options = std::filesystem::directory_options::follow_directory_symlink;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, options)) {
    if (!entry.is_regular_file()) continue;
    if (entry.path().filename().string().starts_with('.')) continue;
    (kind_of(entry.path()) == FileKind::unknown ? skipped : found).push_back(entry.path());
  }
  if (!skipped.empty()) {
    log_warning(fmt::format("{}: skipped {} files that are not {}; the first: {}", folder.string(),
                            skipped.size(), kKinds, skipped.front().string()));
  }
  return found;
}

Paths matches_of(const std::string& pattern) {
  glob_t result{};
  const int code = ::glob(pattern.c_str(), GLOB_NOSORT, nullptr, &result);
  Paths found;
  for (size_t i = 0; i < result.gl_pathc; ++i) found.emplace_back(result.gl_pathv[i]);
  ::globfree(&result);
  if (code != 0 && code != GLOB_NOMATCH) throw Error(pattern + ": cannot be searched");
  return found;
}

}  // namespace

FileKind kind_of(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  if (extension == ".gz" || extension == ".zst") {
    const std::filesystem::path inner = path.stem();
    const std::string of_inner = inner.extension().string();
    return of_inner == ".gz" || of_inner == ".zst" ? FileKind::unknown : kind_of(inner);
  }
  if (extension == ".jsonl" || extension == ".ndjson") return FileKind::json_lines;
  if (extension == ".txt") return FileKind::plain_text;
  return FileKind::unknown;
}

Paths expand_inputs(const std::vector<std::string>& inputs) {
  Paths files;
  for (const std::string& input : inputs) {
    // A name that exists is meant as it is, brackets and all.
    const Paths named =
        std::filesystem::exists(input) ? Paths{std::filesystem::path(input)} : matches_of(input);
    if (named.empty()) throw Error(input + ": no such file or folder, and no file matches it");
    Paths of_input;
    for (const std::filesystem::path& path : named) {
      if (std::filesystem::is_directory(path)) {
        const Paths inside = files_in(path);
        of_input.insert(of_input.end(), inside.begin(), inside.end());
      } else if (kind_of(path) == FileKind::unknown) {
        throw Error(path.string() + ": unknown kind of file; inputs are " + kKinds);
      } else {
        of_input.push_back(path);
      }
    }
    if (of_input.empty()) throw Error(input + ": holds no file that is " + kKinds);
    std::sort(of_input.begin(), of_input.end(),
              [](const auto& a, const auto& b) { return a.native() < b.native(); });
    files.insert(files.end(), of_input.begin(), of_input.end());
  }
  return files;
}

}  // namespace smalltalk
