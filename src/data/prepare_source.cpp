#include "prepare_source.hpp"

#include <fmt/format.h>

#include <fstream>

#include "hdf5_file.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kProbeBytes = int64_t{1} << 16;

std::string probe(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary | std::ios::ate);
  if (!in) throw Error(file.string() + ": cannot be read");
  const auto size = static_cast<int64_t>(in.tellg());
  std::string bytes(static_cast<size_t>(std::min(size, kProbeBytes)), '\0');
  in.seekg(0);
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  const std::string head = hash_text(bytes);
  in.seekg(size - static_cast<int64_t>(bytes.size()));
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!in) throw Error(file.string() + ": cannot be read");
  return fmt::format("{} {} {} {}\n", file.filename().string(), size, head, hash_text(bytes));
}

}  // namespace

std::string source_hash(const std::vector<std::filesystem::path>& files,
                        const std::string& tokenizer_hash) {
  std::string text = fmt::format("tokenizer {}\n", tokenizer_hash);
  for (const std::filesystem::path& file : files) text += probe(file);
  return hash_text(text);
}

void refuse_bad_documents(const BadDocuments& bad, double max_bad_fraction) {
  const double allowed = max_bad_fraction * static_cast<double>(bad.documents);
  if (static_cast<double>(bad.bad()) <= allowed) return;
  std::string text = fmt::format(
      "{} of {} documents are bad ({} not UTF-8, {} empty, {} broken JSON), more than the share of "
      "{} that data.max_bad_fraction allows. Mend the inputs or raise it. The first:",
      bad.bad(), bad.documents, bad.bad_utf8, bad.empty, bad.broken_json, max_bad_fraction);
  for (const std::string& example : bad.examples) text += "\n  " + example;
  throw Error(text);
}

PrepareReport report_of(const PrepareOptions& options, const std::string& tokenizer_hash,
                        const std::string& source) {
  PrepareReport report;
  report.info = TokenFile(options.out).info();
  const Hdf5File file = Hdf5File::open(options.out);
  const bool same_tokenizer = report.info.tokenizer_hash == tokenizer_hash;
  if (!file.has_attribute("source_hash") || file.text_attribute("source_hash") != source) {
    throw Error(fmt::format("{}: exists, but was made {}. Remove it, or write somewhere else",
                            options.out.string(),
                            same_tokenizer ? "from other inputs" : "with another tokenizer"));
  }
  report.bad.documents = file.integer_attribute("documents_read");
  report.bad.bad_utf8 = file.integer_attribute("bad_utf8");
  report.bad.empty = file.integer_attribute("empty");
  report.bad.broken_json = file.integer_attribute("broken_json");
  report.bad.examples = file.read_list("bad_examples");
  return report;
}

}  // namespace smalltalk
