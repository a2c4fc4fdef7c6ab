#include <array>
#include <memory>
#include <vector>

#include "file.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/core/run_folder.hpp"
#include "xxh3.hpp"

namespace smalltalk {
namespace {

std::string hex(uint64_t value) {
  std::string text(16, '0');
  for (size_t i = text.size(); i-- > 0; value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  return text;
}

}  // namespace

std::string hash_bytes(std::span<const std::byte> bytes) {
  return hex(XXH3_64bits(bytes.data(), bytes.size()));
}

std::string hash_text(std::string_view text) { return hex(XXH3_64bits(text.data(), text.size())); }

std::string hash_file(const std::filesystem::path& path) {
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  ST_CHECK(state != nullptr);
  XXH3_64bits_reset(state.get());
  const File file = File::open(path, O_RDONLY);
  std::vector<char> buffer(size_t{1} << 20);
  while (const size_t count = file.read(buffer)) {
    XXH3_64bits_update(state.get(), buffer.data(), count);
  }
  return hex(XXH3_64bits_digest(state.get()));
}

}  // namespace smalltalk
