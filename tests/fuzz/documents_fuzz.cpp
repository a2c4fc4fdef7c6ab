// The first byte chooses the kind of file, the second where JSON lines are cut into blocks.
#include "data/input_part.hpp"
#include "fuzz.hpp"

namespace smalltalk {
namespace {

constexpr const char* kNames[] = {"a.jsonl", "a.jsonl.gz", "a.jsonl.zst",
                                  "a.txt",   "a.txt.gz",   "a.txt.zst"};

struct Read {
  std::string texts;
  BadDocuments bad;
};

void read_into(Read& read, const std::filesystem::path& file, int64_t begin, int64_t end) {
  read.bad.add(read_part(file, {0, begin, end}, [&](const Document& document) {
    read.texts += std::string(document.text) + '\0' + std::string(document.domain) + '\0';
    return true;
  }));
}

}  // namespace
}  // namespace smalltalk

extern "C" int fuzz_documents(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  if (size < 2) return 0;
  const size_t kind = data[0] % std::size(kNames);
  const auto bytes = static_cast<int64_t>(size) - 2;
  const auto path = fuzz::write_file(kNames[kind], fuzz::text_of(data + 2, size - 2));
  Read whole;
  const bool read = fuzz::result_or_error(kNames[kind], [&] { read_into(whole, path, 0, bytes); });
  fuzz::require(read || kind % 3 != 0, "a plain file cannot be read");
  if (kind != 0) return 0;
  const int64_t cut = bytes * data[1] / 256;
  Read in_blocks;
  read_into(in_blocks, path, 0, cut);
  read_into(in_blocks, path, cut, bytes);
  fuzz::require(in_blocks.texts == whole.texts && in_blocks.bad.examples == whole.bad.examples &&
                    in_blocks.bad.documents == whole.bad.documents,
                "blocks give other documents");
  return 0;
}
