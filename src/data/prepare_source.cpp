#include "prepare_source.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "checksums.hpp"
#include "hdf5_file.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace fs = std::filesystem;

namespace {

fs::path seen_file(const fs::path& out) { return out.string() + ".seen"; }

[[noreturn]] void refuse(const fs::path& out, const std::string& reason) {
  throw Error(
      fmt::format("{}: exists, but was made {}. Put that back, write somewhere else, or remove it "
                  "with all that was made from it",
                  out.string(), reason));
}

}  // namespace

std::string stat_key(const std::vector<fs::path>& files) {
  std::string text;
  for (const fs::path& file : files) {
    struct stat seen {};
    if (::stat(file.c_str(), &seen) != 0) {
      throw Error(file.string() + ": cannot be read: " + std::strerror(errno));
    }
    text += fmt::format("{} {}.{}\n", seen.st_size, seen.st_mtim.tv_sec, seen.st_mtim.tv_nsec);
  }
  return hash_text(text);
}

std::vector<uint64_t> hashes_of(const fs::path& file, const InputPart& part) {
  std::ifstream in(file, std::ios::binary);
  in.seekg(part.begin);
  std::vector<char> bytes(static_cast<size_t>(kPieceBytes));
  std::vector<uint64_t> hashes;
  for (int64_t at = part.begin; at < part.end; at += kPieceBytes) {
    const int64_t size = std::min(kPieceBytes, part.end - at);
    if (!in.read(bytes.data(), size)) throw Error(file.string() + ": cannot be read");
    hashes.push_back(
        hash_pieces(std::as_bytes(std::span(bytes).first(static_cast<size_t>(size)))).front());
  }
  return hashes;
}

std::string content_of(int64_t size, std::span<const uint64_t> hashes) {
  Hasher hasher;
  hasher.update(std::as_bytes(hashes));
  return fmt::format("{} {}", size, hasher.digest());
}

std::string to_text(const DocumentFields& fields) {
  return fmt::format("text {} domain {}{}", fields.text, fields.domain,
                     fields.lines ? " lines" : "");
}

std::string to_text(const PrepareOptions& options) {
  const std::string fields = to_text(options.fields);
  if (options.packed_length == 0) return fields;
  return fmt::format("{} packed into {}", fields, options.packed_length);
}

void note_seen(const PrepareOptions& options, const InputFiles& inputs) {
  write_text_atomically(seen_file(options.out), stat_key(inputs.files) + "\n");
}

bool require_same_text(const PrepareOptions& options, const Tokenizer& tokenizer) {
  const fs::path& out = options.out;
  if (TokenFile(out).info().tokenizer_hash != tokenizer.hash()) {
    refuse(out, "with another tokenizer");
  }
  const Hdf5File file = Hdf5File::open(out);
  if (!file.has_dataset("sources")) refuse(out, "by an older version of this program");
  if (file.text_attribute("fields") != to_text(options)) {
    refuse(out, fmt::format("from other fields or packed otherwise ({})",
                            file.text_attribute("fields")));
  }
  InputFiles inputs;
  try {
    inputs = expand_inputs(options.inputs);
  } catch (const Error& error) {
    if (options.verify) throw;
    log_warning(fmt::format("{}; {} is complete and taken as it is", error.what(), out.string()));
    return false;
  }
  const fs::path seen = seen_file(out);
  const std::string key = stat_key(inputs.files) + "\n";
  if (!options.verify && fs::exists(seen) && read_text(seen) == key) return true;
  const std::vector<std::string> sources = file.read_list("sources");
  if (sources.size() != inputs.files.size()) {
    refuse(out,
           fmt::format("from other inputs: {} files, not {}", sources.size(), inputs.files.size()));
  }
  Progress progress("verify", std::ssize(sources), "files");
  for (size_t i = 0; i < sources.size(); ++i) {
    stop_if_asked();
    const fs::path& input = inputs.files[i];
    const auto size = static_cast<int64_t>(fs::file_size(input));
    if (content_of(size, hashes_of(input, {0, 0, size})) != sources[i]) {
      refuse(out, fmt::format("from other inputs: {} was another text then", input.string()));
    }
    progress.update(static_cast<int64_t>(i) + 1);
  }
  note_seen(options, inputs);
  return true;
}

std::vector<std::string> to_lines(const Counts& counts) {
  std::vector<std::string> lines;
  for (const auto& [name, count] : counts) lines.push_back(fmt::format("{} {}", count, name));
  return lines;
}

Counts counts_of(const std::vector<std::string>& lines) {
  Counts counts;
  for (const std::string& line : lines) {
    const size_t space = line.find(' ');
    if (space == std::string::npos) throw Error("'" + line + "' counts nothing");
    counts[line.substr(space + 1)] = std::atoll(line.c_str());
  }
  return counts;
}

void refuse_bad_documents(const BadDocuments& bad, double max_bad_fraction) {
  const double allowed = max_bad_fraction * static_cast<double>(bad.documents);
  if (static_cast<double>(bad.bad()) <= allowed) return;
  std::string text = fmt::format(
      "{} of {} documents are bad ({} not UTF-8, {} empty, {} broken JSON), more than the share of "
      "{} that data.max_bad_fraction allows. Mend the inputs or raise it; data.text_key names the "
      "field of the text. The first:",
      bad.bad(), bad.documents, bad.bad_utf8, bad.empty, bad.broken_json, max_bad_fraction);
  for (const std::string& example : bad.examples) text += "\n  " + example;
  throw Error(text);
}

PrepareReport report_of(const fs::path& out) {
  PrepareReport report;
  report.info = TokenFile(out).info();
  const Hdf5File file = Hdf5File::open(out);
  report.bad.documents = file.integer_attribute("documents_read");
  report.bad.bad_utf8 = file.integer_attribute("bad_utf8");
  report.bad.empty = file.integer_attribute("empty");
  report.bad.broken_json = file.integer_attribute("broken_json");
  report.bad.examples = file.read_list("bad_examples");
  report.bad.bent = counts_of(file.read_list("bent"));
  report.left_out = counts_of(file.read_list("left_out"));
  report.num_domains = std::ssize(file.read_list("domains")) - 1;  // without "unknown"
  return report;
}

}  // namespace smalltalk
