// An odd first byte: the rest is the file. An even one: a trailer, a NUL, the content, from which a
// whole file with the right checksums is made.
#include "data/part_file.hpp"
#include "fuzz.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {
namespace {

std::string little_endian(uint64_t value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

// {"content_hash":?,... gets the hash of the content.
std::string whole_part(std::string_view trailer_text, std::string_view content) {
  std::string trailer(trailer_text);
  if (const size_t at = trailer.find('?'); at != std::string::npos) {
    trailer.replace(at, 1, '"' + hash_text(content) + '"');
  }
  return std::string(content) + trailer + little_endian(trailer.size()) + hash_text(trailer) +
         "STPART03";
}

}  // namespace
}  // namespace smalltalk

extern "C" int fuzz_part_file(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  if (size == 0) return 0;
  std::string file(fuzz::text_of(data + 1, size - 1));
  if (data[0] % 2 == 0) {
    const auto parts = fuzz::split(file, 2);
    file = whole_part(parts[0], parts.size() > 1 ? parts[1] : "");
  }
  const auto path = fuzz::write_file("part", file);
  fuzz::result_or_error("part", [&] {
    const auto info = read_part_info(path);
    if (!info) return;
    require_whole(path, *info);
    std::vector<uint64_t> ends(static_cast<size_t>(info->num_documents));
    read_part_values<uint64_t>(path, info->num_tokens * info->token_bytes, ends);
  });
  return 0;
}
