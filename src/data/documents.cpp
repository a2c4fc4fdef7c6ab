#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "byte_reader.hpp"
#include "input_part.hpp"
#include "line_reader.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr size_t kMaxExamples = 10;
constexpr size_t kMaxDomainBytes = 256;  // every domain takes as much space as the longest
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\n\r\v\f") == std::string_view::npos;
}

// Only asked for when a document is bad: counting lines ahead of a part costs reading them.
int64_t lines_before(const std::filesystem::path& file, int64_t offset) {
  if (offset == 0) return 0;
  const ByteReader bytes = open_bytes(file);
  std::vector<char> buffer(size_t{1} << 20);
  int64_t lines = 0;
  for (int64_t left = offset; left > 0;) {
    const size_t want = static_cast<size_t>(std::min<int64_t>(left, int64_t{1} << 20));
    const size_t got = bytes({buffer.data(), want});
    if (got == 0) break;
    lines += std::count(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(got), '\n');
    left -= static_cast<int64_t>(got);
  }
  return lines;
}

// Counts what is left out, with the place in the file.
class BadRecorder {
 public:
  BadRecorder(const std::filesystem::path& file, BadDocuments& bad) : file_(file), bad_(bad) {}

  // `line` counts from 1 inside the part of the file that begins at `start`.
  void record(int64_t& counter, int64_t start, int64_t line, std::string_view reason) {
    ++counter;
    if (bad_.examples.size() >= kMaxExamples) return;
    if (!lines_before_) lines_before_ = lines_before(file_, start);
    bad_.examples.push_back(
        fmt::format("{}:{}: {}", file_.string(), *lines_before_ + line, reason));
  }

 private:
  const std::filesystem::path& file_;
  BadDocuments& bad_;
  std::optional<int64_t> lines_before_;
};

// Why a line of JSON gives no document; none if it does.
std::optional<std::string> document_of(simdjson::dom::parser& parser, std::string_view line,
                                       Document& document) {
  simdjson::dom::element root;
  // Not the on-demand parser: it would take a line that is broken behind the text.
  if (const auto code = parser.parse(line.data(), line.size(), false).get(root)) {
    return fmt::format("broken JSON ({})", simdjson::error_message(code));
  }
  simdjson::dom::object object;
  if (root.get(object)) return "not a JSON object";
  if (object["text"].get(document.text)) return "no string \"text\"";
  if (object["domain"].get(document.domain)) document.domain = {};
  if (document.domain.size() > kMaxDomainBytes) return "a \"domain\" of more than 256 bytes";
  if (document.domain.find('\0') != std::string_view::npos) return "NUL in \"domain\"";
  return std::nullopt;
}

BadDocuments read_json_lines(const std::filesystem::path& file, const InputPart& part,
                             const std::function<bool(const Document&)>& take) {
  BadDocuments bad;
  BadRecorder recorder(file, bad);
  // One byte earlier, so that a part which begins right behind a line end keeps its first line.
  const int64_t start = std::max<int64_t>(part.begin - 1, 0);
  LineReader lines(open_bytes(file, start), file, simdjson::SIMDJSON_PADDING);
  int64_t number = 0;
  if (part.begin > 0) {
    lines.next();
    ++number;
  }
  const bool whole = compression_of(file) != Compression::none;
  simdjson::dom::parser parser;
  while (whole || start + lines.position() < part.end) {
    const bool first_of_file = start == 0 && number == 0;
    std::optional<std::string_view> line = lines.next();
    if (!line) break;
    ++number;
    if (first_of_file && line->starts_with(kByteOrderMark)) {
      line->remove_prefix(kByteOrderMark.size());
    }
    if (is_blank(*line)) continue;
    ++bad.documents;
    if (!simdjson::validate_utf8(line->data(), line->size())) {
      recorder.record(bad.bad_utf8, start, number, "not UTF-8");
      continue;
    }
    Document document;
    if (const auto reason = document_of(parser, *line, document)) {
      recorder.record(bad.broken_json, start, number, *reason);
    } else if (is_blank(document.text)) {
      recorder.record(bad.empty, start, number, "empty text");
    } else if (!take(document)) {
      break;
    }
  }
  return bad;
}

BadDocuments read_plain_text(const std::filesystem::path& file,
                             const std::function<bool(const Document&)>& take) {
  BadDocuments bad;
  BadRecorder recorder(file, bad);
  const ByteReader bytes = open_bytes(file);
  const size_t max_bytes = max_document_bytes(file);
  std::string text;
  for (size_t got = 1; got > 0;) {
    const size_t size = text.size();
    if (size > max_bytes) refuse_bomb(file, max_bytes);
    text.resize(std::max<size_t>(size_t{1} << 18, size * 2));
    got = bytes({text.data() + size, text.size() - size});
    text.resize(size + got);
  }
  std::string_view view = text;
  if (view.starts_with(kByteOrderMark)) view.remove_prefix(kByteOrderMark.size());
  bad.documents = 1;
  if (!simdjson::validate_utf8(view.data(), view.size())) {
    recorder.record(bad.bad_utf8, 0, 1, "not UTF-8");
  } else if (is_blank(view)) {
    recorder.record(bad.empty, 0, 1, "empty text");
  } else {
    take({view, {}});
  }
  return bad;
}

}  // namespace

void BadDocuments::add(const BadDocuments& other) {
  documents += other.documents;
  bad_utf8 += other.bad_utf8;
  empty += other.empty;
  broken_json += other.broken_json;
  for (const std::string& example : other.examples) {
    if (examples.size() < kMaxExamples) examples.push_back(example);
  }
}

std::vector<InputPart> cut_into_parts(const std::vector<std::filesystem::path>& files) {
  // At most some 4,000 parts of at least 1 MiB: enough to share among many ranks, few enough
  // files for a shared file system.
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (const std::filesystem::path& file : files) {
    std::error_code error;
    const auto size = std::filesystem::file_size(file, error);
    if (error) throw Error(file.string() + ": cannot be read: " + error.message());
    sizes.push_back(static_cast<int64_t>(size));
    total += sizes.back();
  }
  const int64_t part_bytes = std::max<int64_t>(int64_t{1} << 20, total / 4096);
  std::vector<InputPart> parts;
  for (size_t i = 0; i < files.size(); ++i) {
    const bool can_be_cut =
        kind_of(files[i]) == FileKind::json_lines && compression_of(files[i]) == Compression::none;
    const int64_t step = can_be_cut ? part_bytes : std::max<int64_t>(sizes[i], 1);
    int64_t begin = 0;
    do {
      const int64_t end = std::min(begin + step, sizes[i]);
      parts.push_back({static_cast<int64_t>(i), begin, end});
      begin = end;
    } while (begin < sizes[i]);
  }
  return parts;
}

BadDocuments read_part(const std::filesystem::path& file, const InputPart& part,
                       const std::function<bool(const Document&)>& take) {
  const FileKind kind = kind_of(file);
  if (kind == FileKind::unknown) throw Error(file.string() + ": unknown kind of file");
  return kind == FileKind::plain_text ? read_plain_text(file, take)
                                      : read_json_lines(file, part, take);
}

BadDocuments read_documents(const std::filesystem::path& file,
                            const std::function<void(const Document&)>& take) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  if (error) throw Error(file.string() + ": cannot be read: " + error.message());
  return read_part(file, {0, 0, static_cast<int64_t>(size)}, [&](const Document& document) {
    take(document);
    return true;
  });
}

}  // namespace smalltalk
