#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "byte_reader.hpp"
#include "checksums.hpp"
#include "input_part.hpp"
#include "json_document.hpp"
#include "json_value_reader.hpp"
#include "line_reader.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr size_t kMaxExamples = 10;
constexpr const char* kOrderMark = "byte order mark";
constexpr const char* kCarriageReturn = "CRLF";
constexpr const char* kPadding = "zeros behind the compressed stream";

bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\n\r\v\f") == std::string_view::npos;
}

int64_t size_of(const std::filesystem::path& file) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  if (error) throw Error(file.string() + ": cannot be read: " + error.message());
  return static_cast<int64_t>(size);
}

// At most some 4,000 parts of at least 1 MiB: enough to share among many ranks, few enough files
// for a shared file system.
// Whole MiBs, as their hashes are.
int64_t bytes_of_part(int64_t total) {
  return std::max<int64_t>(1, total / 4096 / kPieceBytes) * kPieceBytes;
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

// Whether a part of the file is read without what comes before it.
bool can_be_cut(const std::filesystem::path& file, const DocumentFields& fields) {
  const bool json = kind_of(file) == FileKind::json;
  return (json || fields.lines) && !is_compressed(file) && !(json && holds_values(file));
}

using Take = std::function<bool(const Document&)>;  // false: enough

// Of a line, counted from 1 inside the part of the file that begins at `start`.
struct Place {
  int64_t start = 0;
  int64_t line = 0;
};

struct Line {
  std::string_view text;  // without its end and a byte order mark
  Place place;
  std::vector<const char*> bent;  // the rules that it breaks
};

// Counts what is left out, with the place in the file.
class BadRecorder {
 public:
  BadRecorder(const std::filesystem::path& file, BadDocuments& bad) : file_(file), bad_(bad) {}

  void record(int64_t& counter, const Place& place, std::string_view reason) {
    ++counter;
    if (bad_.examples.size() >= kMaxExamples) return;
    if (!lines_before_) lines_before_ = lines_before(file_, place.start);
    bad_.examples.push_back(
        fmt::format("{}:{}: {}", file_.string(), *lines_before_ + place.line, reason));
  }

 private:
  const std::filesystem::path& file_;
  BadDocuments& bad_;
  std::optional<int64_t> lines_before_;
};

using TakeLine = std::function<bool(Line&)>;  // false: enough

// Counts a line, and takes it if it is UTF-8.
bool offer(Line line, BadDocuments& bad, BadRecorder& recorder, const TakeLine& take) {
  ++bad.documents;
  if (!simdjson::validate_utf8(line.text.data(), line.text.size())) {
    recorder.record(bad.bad_utf8, line.place, "not UTF-8");
    return true;
  }
  const bool goes_on = take(line);
  for (const std::string& rule : std::set<std::string>(line.bent.begin(), line.bent.end())) {
    ++bad.bent[rule];
  }
  return goes_on;
}

// Calls `take` with each line that begins in the part and is not blank, until it returns false.
void for_each_line(const std::filesystem::path& file, const InputPart& part, BadDocuments& bad,
                   BadRecorder& recorder, const TakeLine& take) {
  // One byte earlier, so that a part which begins right behind a line end keeps its first line.
  const int64_t start = std::max<int64_t>(part.begin - 1, 0);
  bool padded = false;
  LineReader lines(ReadAhead(open_bytes(file, start, &padded), file, simdjson::SIMDJSON_PADDING));
  int64_t number = 0;
  if (part.begin > 0) {
    lines.next();
    ++number;
  }
  const bool whole = compression_of(file) != Compression::none;
  bool goes_on = true;
  while (goes_on && (whole || start + lines.position() < part.end)) {
    const std::optional<std::string_view> read = lines.next();
    if (!read) break;
    Line line{*read, {start, ++number}, {}};
    if (line.text.ends_with('\r')) {
      line.text.remove_suffix(1);
      line.bent.push_back(kCarriageReturn);
    }
    while (line.text.starts_with(kByteOrderMark)) {
      line.text.remove_prefix(kByteOrderMark.size());
      line.bent.push_back(kOrderMark);
    }
    if (!is_blank(line.text)) goes_on = offer(std::move(line), bad, recorder, take);
  }
  if (padded) ++bad.bent[kPadding];
}

// The same with each value of a file that holds_values().
void for_each_value(const std::filesystem::path& file, BadDocuments& bad, BadRecorder& recorder,
                    const TakeLine& take) {
  bool padded = false;
  JsonValueReader values(ReadAhead(open_bytes(file, 0, &padded), file, simdjson::SIMDJSON_PADDING));
  for (bool goes_on = true; goes_on;) {
    const std::optional<std::string_view> value = values.next();
    if (!value) break;
    goes_on = offer({*value, {0, values.line()}, {}}, bad, recorder, take);
  }
  if (padded) ++bad.bent[kPadding];
  if (values.marks() > 0) bad.bent[kOrderMark] += values.marks();
}

// Of a file of JSON.
void for_each_row(const std::filesystem::path& file, const InputPart& part, BadDocuments& bad,
                  BadRecorder& recorder, const TakeLine& take) {
  if (part.begin == 0 && holds_values(file)) {
    for_each_value(file, bad, recorder, take);
  } else {
    for_each_line(file, part, bad, recorder, take);
  }
}

BadDocuments read_json(const std::filesystem::path& file, const InputPart& part,
                       const DocumentFields& fields, const Take& take) {
  BadDocuments bad;
  BadRecorder recorder(file, bad);
  JsonDocument json(fields);
  const TakeLine take_line = [&](Line& line) {
    Document document;
    if (const auto reason = json.read(line.text, document, line.bent)) {
      recorder.record(bad.broken_json, line.place, *reason);
    } else if (is_blank(document.text) && !fields.blank) {
      recorder.record(bad.empty, line.place, "empty text");
    } else {
      return take(document);
    }
    return true;
  };
  for_each_row(file, part, bad, recorder, take_line);
  return bad;
}

BadDocuments read_text_lines(const std::filesystem::path& file, const InputPart& part,
                             const Take& take) {
  BadDocuments bad;
  BadRecorder recorder(file, bad);
  for_each_line(file, part, bad, recorder, [&](Line& line) { return take({line.text, {}}); });
  return bad;
}

BadDocuments read_plain_text(const std::filesystem::path& file, const Take& take) {
  BadDocuments bad;
  BadRecorder recorder(file, bad);
  bool padded = false;
  const ByteReader bytes = open_bytes(file, 0, &padded);
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
  if (view.starts_with(kByteOrderMark)) {
    view.remove_prefix(kByteOrderMark.size());
    ++bad.bent[kOrderMark];
  }
  if (padded) ++bad.bent[kPadding];
  bad.documents = 1;
  if (!simdjson::validate_utf8(view.data(), view.size())) {
    recorder.record(bad.bad_utf8, {0, 1}, "not UTF-8");
  } else if (is_blank(view)) {
    recorder.record(bad.empty, {0, 1}, "empty text");
  } else {
    take({view, {}});
  }
  return bad;
}

}  // namespace

void read_json_rows(const std::filesystem::path& file, const TakeRow& take) {
  BadDocuments bad;
  BadRecorder recorder(file, bad);
  for_each_row(file, {0, 0, size_of(file)}, bad, recorder, [&](const Line& line) {
    take(with_plain_numbers(line.text), fmt::format("{}:{}", file.string(), line.place.line));
    return true;
  });
  if (bad.bad() > 0) throw Error(bad.examples.at(0));
}

void BadDocuments::add(const BadDocuments& other) {
  documents += other.documents;
  bad_utf8 += other.bad_utf8;
  empty += other.empty;
  broken_json += other.broken_json;
  for (const auto& [rule, count] : other.bent) bent[rule] += count;
  for (const std::string& example : other.examples) {
    if (examples.size() < kMaxExamples) examples.push_back(example);
  }
}

std::vector<InputPart> cut_into_parts(const std::vector<std::filesystem::path>& files,
                                      const DocumentFields& fields) {
  std::vector<int64_t> sizes;
  int64_t total = 0;
  for (const std::filesystem::path& file : files) {
    sizes.push_back(size_of(file));
    total += sizes.back();
  }
  const int64_t part_bytes = bytes_of_part(total);
  std::vector<InputPart> parts;
  for (size_t i = 0; i < files.size(); ++i) {
    const bool cut = sizes[i] > part_bytes && can_be_cut(files[i], fields);
    const int64_t step = cut ? part_bytes : std::max<int64_t>(sizes[i], 1);
    int64_t begin = 0;
    do {
      const int64_t end = std::min(begin + step, sizes[i]);
      parts.push_back({static_cast<int64_t>(i), begin, end});
      begin = end;
    } while (begin < sizes[i]);
  }
  return parts;
}

std::vector<std::vector<InputPart>> bundle(const std::vector<InputPart>& parts) {
  int64_t total = 0;
  for (const InputPart& part : parts) total += part.bytes();
  const int64_t enough = bytes_of_part(total);
  std::vector<std::vector<InputPart>> bundles;
  int64_t bytes = 0;
  for (const InputPart& part : parts) {
    if (bundles.empty() || bytes + part.bytes() > enough) {
      bundles.emplace_back();
      bytes = 0;
    }
    bundles.back().push_back(part);
    bytes += part.bytes();
  }
  return bundles;
}

BadDocuments read_part(const std::filesystem::path& file, const InputPart& part, const Take& take,
                       const DocumentFields& fields) {
  if (kind_of(file) == FileKind::json) return read_json(file, part, fields, take);
  return fields.lines ? read_text_lines(file, part, take) : read_plain_text(file, take);
}

bool holds_values(const std::filesystem::path& file) {
  if (lower_extension(without_compression(file)) != ".json") return false;
  std::string text(4096, ' ');
  text.resize(open_bytes(file)(text));
  std::string_view left = text;
  if (left.starts_with(kByteOrderMark)) left.remove_prefix(kByteOrderMark.size());
  left.remove_prefix(std::min(left.find_first_not_of(" \t\r\n"), left.size()));
  if (left.starts_with('[')) return true;
  const size_t end = left.find('\n');
  return left.starts_with('{') && end != std::string_view::npos &&
         is_blank(left.substr(1, end - 1));
}

bool looks_like_lines(const std::filesystem::path& file) {
  constexpr int64_t kLargest = 4'000'000;  // the longest novels
  constexpr size_t kLongestLine = 2000, kLeastLines = 500;
  const bool compressed = is_compressed(file);
  if (size_of(file) < (compressed ? kLargest / 4 : kLargest)) return false;
  std::string text(kLongestLine * kLeastLines, ' ');
  const ByteReader bytes = open_bytes(file);
  size_t size = 0;
  for (size_t got = 1; got > 0 && size < text.size(); size += got) {
    got = bytes(std::span(text).subspan(size));
  }
  text.resize(size);
  size_t lines = 0, blank = 0;
  for (size_t begin = 0; begin < size; ++lines) {
    const size_t end = std::min(text.find('\n', begin), size);
    if (is_blank(std::string_view(text).substr(begin, end - begin))) ++blank;
    begin = end + 1;
  }
  // Books have blank lines between their paragraphs.
  return lines >= kLeastLines && blank * 20 < lines;
}

void require_good_documents(const std::vector<std::filesystem::path>& files,
                            const DocumentFields& fields) {
  constexpr size_t kFiles = 20;
  constexpr int64_t kBytes =
      1 << 20;  // of lines; what cannot be cut is read if it is not much more
  BadDocuments bad;
  for (size_t i = 0; i < std::min(files.size(), kFiles); ++i) {
    const int64_t size = size_of(files[i]);
    const bool in_lines = can_be_cut(files[i], fields);
    if (!in_lines && size > 16 * kBytes) return;
    bool good = false;
    const auto take = [&](const Document&) {
      good = true;
      return false;
    };
    const int64_t end = in_lines ? std::min(size, kBytes) : size;
    bad.add(read_part(files[i], {static_cast<int64_t>(i), 0, end}, take, fields));
    if (good) return;
  }
  if (bad.bad() == 0) return;
  throw Error(fmt::format("none of the first {} documents can be read: {}", bad.documents,
                          bad.examples.at(0)));
}

BadDocuments read_documents(const std::filesystem::path& file,
                            const std::function<void(const Document&)>& take,
                            const DocumentFields& fields) {
  const auto take_all = [&](const Document& document) {
    take(document);
    return true;
  };
  return read_part(file, {0, 0, size_of(file)}, take_all, fields);
}

}  // namespace smalltalk
