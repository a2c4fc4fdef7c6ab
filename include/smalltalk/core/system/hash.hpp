// XXH3 (64 bits) as 16 hex digits: how contents are named.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace smalltalk {

std::string hash_bytes(std::span<const std::byte> bytes);
std::string hash_text(std::string_view text);
std::string hash_file(const std::filesystem::path& path);

std::string hex_digits(uint64_t value);  // 16

// A hash that can be added up (AdHash, Bellare and Micciancio 1997): the sum modulo 2^64, over the
// 4-byte words, of XXH3 of the word with its index as the seed. A last partial word is padded with
// zeros. The sum over parts that begin at words, each with the index of its first word, is that of
// the whole: ranks that each hold some parts add it up, in any order.
uint64_t additive_hash(std::span<const std::byte> bytes, uint64_t first_word = 0);

// Of bytes that come in pieces.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  void update(std::span<const std::byte> bytes);
  uint64_t value() const;
  std::string digest() const;  // of the value

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace smalltalk
