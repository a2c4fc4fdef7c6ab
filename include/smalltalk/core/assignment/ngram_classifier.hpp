// Which class a text is of, by a linear function of the tokens and pairs of tokens in it, as in
// fastText (Joulin et al., "Bag of Tricks for Efficient Text Classification", 2017): learned in
// seconds from texts whose classes are known, by AdaGrad on the cross-entropy (Duchi et al., JMLR
// 2011). One look at a prefix rates all E experts, where routers take E passes of a language model.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace smalltalk {

struct NgramClassifierOptions {
  int64_t num_classes = 0;
  uint64_t seed = 0;
  int64_t max_sample = int64_t{1} << 18;  // texts that it learns from, drawn uniformly
  int64_t epochs = 2;                     // passes over them
  double rate = 0.05;                     // of AdaGrad
  int hash_bits = 18;                     // n-grams share 2^hash_bits rows of weights
};

// FLOPs of rating a text of so many tokens; learning from one takes three times as many in each
// epoch.
inline double ngram_flops(int64_t num_classes, int64_t num_tokens) {
  return static_cast<double>(num_classes) * static_cast<double>(2 * num_tokens - 1);
}

class NgramClassifier {
 public:
  // Fills in the tokens of a text.
  using Read = std::function<void(uint64_t text, std::span<int64_t> tokens)>;

  // From the first `num_tokens` >= 1 tokens of texts 0 .. N - 1, given their classes [N]. A
  // function of its arguments alone. Holds 8 bytes for each weight. Throws Stopped if this process
  // is asked to stop.
  NgramClassifier(const Read& read, std::span<const uint16_t> classes, int64_t num_tokens,
                  const NgramClassifierOptions& options);

  // The logarithm of each class's probability, but for a constant: [num_classes]
  void rate(std::span<const int64_t> tokens, std::span<float> scores) const;
  int64_t num_classes() const { return num_classes_; }

 private:
  size_t row_of(int64_t before, int64_t token) const;  // before: -1 for the token alone
  std::span<const float> weights_of(size_t row) const;

  int64_t num_classes_;
  int hash_bits_;
  std::vector<float> weights_;  // [2^hash_bits, num_classes]
};

}  // namespace smalltalk
