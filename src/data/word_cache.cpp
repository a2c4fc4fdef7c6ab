#include "word_cache.hpp"

#include <sentencepiece_processor.h>

namespace smalltalk {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581
constexpr size_t kMaxWordBytes = 64;
constexpr size_t kMaxWords = size_t{1} << 20;  // some 100 MB at worst; then it starts anew

// Lines, too, are cut behind their end: byte fallback spells a line end by itself.
bool ends_word(std::string_view text, size_t i) {
  return text[i] != ' ' && (text[i] == '\n' || (i + 1 < text.size() && text[i + 1] == ' '));
}

bool has_cut_inside(std::string_view piece) {
  if (piece.size() > 1 && piece.find('\n') != std::string_view::npos) return true;
  // Spaces (marks) only in front: the last mark must end a run that begins the piece.
  size_t front = 0;
  while (piece.substr(front).starts_with(kSpaceMark)) front += kSpaceMark.size();
  return piece.find(kSpaceMark, front) != std::string_view::npos;
}

}  // namespace

bool WordCache::is_exact_for(const sentencepiece::SentencePieceProcessor& processor) {
  const int num_pieces = processor.GetPieceSize();
  bool byte_fallback = false;
  for (int id = 0; id < num_pieces; ++id) {
    const std::string& piece = processor.IdToPiece(id);
    byte_fallback = byte_fallback || processor.IsByte(id);
    if (has_cut_inside(piece)) return false;
  }
  // Without byte fallback, neighbouring unknown characters become one piece.
  if (!byte_fallback) return false;
  // Every usual normalisation changes one of these: compatibility forms, wide and no-break spaces,
  // letters with marks, white space at the ends and in runs.
  const std::string probe =
      "  \xEF\xAC\x81 \xE2\x91\xA0 \xE2\x84\xAB\xC2\xA0\xE3\x80\x80 e\xCC\x81\t\nA  x ";
  std::vector<int> whole;
  std::vector<int> spaced;
  std::string back;
  if (!processor.Encode(probe, &whole).ok() || !processor.Decode(whole, &back).ok()) return false;
  if (back != probe) return false;
  // A dummy prefix would show as a token in front of the second word.
  std::vector<int> joined;
  if (!processor.Encode("x x", &whole).ok() || !processor.Encode("x", &joined).ok() ||
      !processor.Encode(" x", &spaced).ok()) {
    return false;
  }
  joined.insert(joined.end(), spaced.begin(), spaced.end());
  return joined == whole;
}

bool WordCache::encode(std::string_view text, std::vector<int32_t>& ids) {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock.owns_lock() || text.find(kSpaceMark) != std::string_view::npos) return false;
  ids.reserve(text.size() / 3);
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (!ends_word(text, i)) continue;
    append_word(text.substr(begin, i + 1 - begin), ids);
    begin = i + 1;
  }
  if (begin < text.size()) append_word(text.substr(begin), ids);
  return true;
}

void WordCache::append_word(std::string_view word, std::vector<int32_t>& ids) {
  if (word.size() > kMaxWordBytes) {
    encode_(word, scratch_);
    ids.insert(ids.end(), scratch_.begin(), scratch_.end());
    return;
  }
  auto found = words_.find(word);
  if (found == words_.end()) {
    if (words_.size() >= kMaxWords) {
      words_.clear();
      tokens_.clear();
    }
    encode_(word, scratch_);
    const Tokens place{static_cast<uint32_t>(tokens_.size()),
                       static_cast<uint32_t>(scratch_.size())};
    tokens_.insert(tokens_.end(), scratch_.begin(), scratch_.end());
    found = words_.emplace(word, place).first;
  }
  const auto first = tokens_.begin() + found->second.first;
  ids.insert(ids.end(), first, first + found->second.count);
}

}  // namespace smalltalk
