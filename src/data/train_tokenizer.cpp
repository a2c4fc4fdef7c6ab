#include <fmt/format.h>
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <algorithm>
#include <queue>
#include <unordered_map>

#include "in_child_process.hpp"
#include "input_part.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/core/system/utf8.hpp"
#include "smalltalk/data/tokenizer.hpp"

namespace smalltalk {
namespace {

// The trainer counts positions in a word with 16 bits and ends the process beyond that.
constexpr size_t kMaxSentenceBytes = 8192;
// Of a corpus much larger than the sample, only this many times the sample is read.
constexpr int64_t kReadPerSample = 16;

struct Sampled {
  uint64_t key = 0;
  int64_t part = 0;
  int64_t index = 0;
  std::string text;
  bool operator<(const Sampled& other) const {
    return std::tie(key, part, index) < std::tie(other.key, other.part, other.index);
  }
};

size_t character_start(std::string_view text, size_t at) {
  while (at > 0 && continues_character(text[at])) --at;
  return at;
}

// Parts in a random order, until they hold enough text to draw the sample from.
std::vector<InputPart> parts_to_read(const std::vector<std::filesystem::path>& files,
                                     const DocumentFields& fields, int64_t sample_bytes) {
  std::vector<InputPart> parts = cut_into_parts(files, fields);
  const Permutation order(parts.size(), derive_seed(0, "tokenizer blocks"));
  std::vector<InputPart> chosen;
  int64_t bytes = 0;
  for (size_t i = 0; i < parts.size() && bytes / kReadPerSample < sample_bytes; ++i) {
    chosen.push_back(parts[order(i)]);
    bytes += chosen.back().bytes();
  }
  return chosen;
}

// The documents with the lowest keys whose text sums up to sample_bytes: a uniform sample, in one
// pass, in memory of the sample's size. `bad` gets what is none.
std::vector<Sampled> draw_sample(const std::vector<std::filesystem::path>& files,
                                 const DocumentFields& fields, int64_t sample_bytes,
                                 BadDocuments& bad) {
  std::priority_queue<Sampled> sample;  // the highest key on top
  int64_t total = 0;
  for (const InputPart& part : parts_to_read(files, fields, sample_bytes)) {
    const uint64_t part_key = derive_seed(0, "tokenizer sample", static_cast<uint64_t>(part.file),
                                          static_cast<uint64_t>(part.begin));
    int64_t index = 0;
    const auto take = [&](const Document& document) {
      stop_if_asked();
      const uint64_t key =
          derive_seed(part_key, "tokenizer document", static_cast<uint64_t>(index));
      if (total < sample_bytes || key < sample.top().key) {
        const size_t size = std::min(document.text.size(), static_cast<size_t>(sample_bytes));
        const size_t cut =
            size == document.text.size() ? size : character_start(document.text, size);
        sample.push({key, static_cast<int64_t>(part_key), index,
                     std::string(document.text.substr(0, cut))});
        total += static_cast<int64_t>(cut);
      }
      while (!sample.empty() &&
             total - static_cast<int64_t>(sample.top().text.size()) >= sample_bytes) {
        total -= static_cast<int64_t>(sample.top().text.size());
        sample.pop();
      }
      ++index;
      return true;
    };
    bad.add(read_part(files[static_cast<size_t>(part.file)], part, take, fields));
  }
  std::vector<Sampled> documents;
  for (; !sample.empty(); sample.pop()) documents.push_back(sample.top());
  return documents;
}

// Lines, cut further where they are longer than the trainer bears: in front of a space if there is
// one. Line ends and NUL are no part of any piece; byte fallback spells them.
std::vector<std::string> sentences_of(const std::vector<Sampled>& documents) {
  std::vector<std::string> sentences;
  for (const Sampled& document : documents) {
    std::string_view rest = document.text;
    while (!rest.empty()) {
      size_t size = std::min(rest.find_first_of(std::string_view("\n\r\0", 3)), rest.size());
      if (size > kMaxSentenceBytes) {
        const size_t space = rest.rfind(' ', kMaxSentenceBytes);
        size = space == std::string_view::npos || space == 0
                   ? character_start(rest, kMaxSentenceBytes)
                   : space;
      }
      if (size == 0) {
        rest.remove_prefix(1);
        continue;
      }
      sentences.emplace_back(rest.substr(0, size));
      rest.remove_prefix(size);
    }
  }
  return sentences;
}

class Sentences : public sentencepiece::SentenceIterator {
 public:
  explicit Sentences(std::vector<std::string> sentences) : sentences_(std::move(sentences)) {}
  bool done() const override { return at_ >= sentences_.size(); }
  void Next() override { ++at_; }
  const std::string& value() const override { return sentences_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::vector<std::string> sentences_;
  size_t at_ = 0;
};

}  // namespace

void train_tokenizer(const std::vector<std::string>& inputs, int64_t vocab_size,
                     int64_t sample_bytes, const std::filesystem::path& model,
                     const DocumentFields& fields) {
  if (vocab_size < kLeastVocabSize) {
    throw Error(
        fmt::format("a vocabulary of {} is too small: 259 ids are taken by <unk>, <s>, "
                    "</s> and the bytes",
                    vocab_size));
  }
  if (sample_bytes < 1) throw Error("the tokenizer's sample must be at least one byte");
  BadDocuments bad;
  Sentences sentences(
      sentences_of(draw_sample(expand_inputs(inputs).files, fields, sample_bytes, bad)));
  if (sentences.done()) {
    throw Error("the inputs hold no text to train a tokenizer on" +
                (bad.examples.empty() ? "" : "; the first document: " + bad.examples[0]) +
                " (data.text_key names the field of the text)");
  }
  const std::unordered_map<std::string, std::string> recipe = {
      {"model_type", "bpe"},
      {"vocab_size", std::to_string(vocab_size)},
      {"byte_fallback", "true"},
      {"normalization_rule_name", "identity"},
      {"add_dummy_prefix", "false"},
      {"remove_extra_whitespaces", "false"},
      {"allow_whitespace_only_pieces", "true"},
      {"split_digits", "true"},
      {"unk_id", "0"},
      {"bos_id", "1"},
      {"eos_id", "2"},
      {"pad_id", "-1"},
      {"character_coverage", "0.9995"},
      {"hard_vocab_limit", "true"},  // exactly the size asked for, or an error
      {"num_threads", "1"},
      {"max_sentence_length", "1000000"},
      {"minloglevel", "2"},
  };
  write_text_atomically(
      model, in_child_process("training a tokenizer", [&] {
        std::string bytes;
        const auto status = sentencepiece::SentencePieceTrainer::Train(recipe, &sentences, &bytes);
        if (!status.ok()) {
          throw Error(fmt::format(
              "no tokenizer of {} ids can be trained on this text: give it more text, or ask for a "
              "smaller vocabulary (one larger than the number of different characters + 259). "
              "SentencePiece says: {}",
              vocab_size, status.ToString()));
        }
        return bytes;
      }));
}

}  // namespace smalltalk
