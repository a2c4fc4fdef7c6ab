// The first byte chooses the kind of file and which fields are read, the second where lines are cut
// into blocks.
#include "data/input_part.hpp"
#include "fuzz.hpp"

namespace smalltalk {
namespace {

constexpr const char* kNames[] = {"a.jsonl", "a.jsonl.gz", "a.jsonl.zst",
                                  "a.txt",   "a.txt.gz",   "a.txt.zst"};
constexpr uint8_t kFirstJson = 198;  // from here on a.json takes the place of a.jsonl

struct Read {
  std::string texts;
  BadDocuments bad;
};

void read_into(Read& read, const std::filesystem::path& file, int64_t begin, int64_t end,
               const DocumentFields& fields) {
  const auto take = [&](const Document& document) {
    read.texts += std::string(document.text) + '\0' + std::string(document.domain) + '\0';
    return true;
  };
  read.bad.add(read_part(file, {0, begin, end}, take, fields));
}

}  // namespace
}  // namespace smalltalk

extern "C" int fuzz_documents(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  if (size < 2) return 0;
  const size_t kind = data[0] % std::size(kNames);
  const auto bytes = static_cast<int64_t>(size) - 2;
  const char* name = kind == 0 && data[0] >= kFirstJson ? "a.json" : kNames[kind];
  const auto path = fuzz::write_file(name, fuzz::text_of(data + 2, size - 2));
  DocumentFields fields;
  const size_t choice = data[0] / std::size(kNames);
  if (choice % 3 == 1) fields = {"a.b", "", false};
  if (choice % 3 == 2) fields = {"b", "a", true};
  Read whole;
  const bool read = fuzz::result_or_error(name, [&] { read_into(whole, path, 0, bytes, fields); });
  const bool values = holds_values(path);  // brackets may not match
  fuzz::require(read || kind % 3 != 0 || values, "a plain file cannot be read");
  if (values || (kind != 0 && !(kind == 3 && fields.lines))) return 0;
  const int64_t cut = bytes * data[1] / 256;
  Read in_blocks;
  read_into(in_blocks, path, 0, cut, fields);
  read_into(in_blocks, path, cut, bytes, fields);
  fuzz::require(in_blocks.texts == whole.texts && in_blocks.bad.examples == whole.bad.examples &&
                    in_blocks.bad.bent == whole.bad.bent &&
                    in_blocks.bad.documents == whole.bad.documents,
                "blocks give other documents");
  return 0;
}
