#include "smalltalk/core/system/hash.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "core/system/xxh3.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/file.hpp"

namespace smalltalk {

std::string hex_digits(uint64_t value) {
  std::string text(16, '0');
  for (size_t i = text.size(); i-- > 0; value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  return text;
}

std::string hash_bytes(std::span<const std::byte> bytes) {
  return hex_digits(XXH3_64bits(bytes.data(), bytes.size()));
}

std::string hash_text(std::string_view text) {
  return hex_digits(XXH3_64bits(text.data(), text.size()));
}

uint64_t additive_hash(std::span<const std::byte> bytes, uint64_t first_word) {
  constexpr size_t kWord = 4;
  const size_t words = bytes.size() / kWord;
  uint64_t sum = 0;
  for (size_t i = 0; i < words; ++i) {
    sum += XXH3_64bits_withSeed(bytes.data() + i * kWord, kWord, first_word + i);
  }
  if (const auto rest = bytes.subspan(words * kWord); !rest.empty()) {
    std::array<std::byte, kWord> last{};
    std::ranges::copy(rest, last.begin());
    sum += XXH3_64bits_withSeed(last.data(), kWord, first_word + words);
  }
  return sum;
}

struct Hasher::State {
  XXH3_state_t* xxh3 = XXH3_createState();
  ~State() { XXH3_freeState(xxh3); }
};

Hasher::Hasher() : state_(std::make_unique<State>()) {
  ST_CHECK(state_->xxh3 != nullptr);
  XXH3_64bits_reset(state_->xxh3);
}

Hasher::~Hasher() = default;

void Hasher::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_->xxh3, bytes.data(), bytes.size());
}

uint64_t Hasher::value() const { return XXH3_64bits_digest(state_->xxh3); }

std::string Hasher::digest() const { return hex_digits(value()); }

std::string hash_file(const std::filesystem::path& path) {
  Hasher hasher;
  const File file = File::open(path, O_RDONLY);
  std::vector<char> buffer(size_t{1} << 20);
  while (const size_t count = file.read(buffer)) {
    hasher.update(std::as_bytes(std::span(buffer).first(count)));
  }
  return hasher.digest();
}

}  // namespace smalltalk
