#include "smalltalk/mixture/routing/ngram_routing.hpp"

#include <algorithm>
#include <cmath>

#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"

namespace smalltalk {

namespace {

void subtract_log_sum(std::span<float> scores) {
  const float maximum = *std::ranges::max_element(scores);
  double sum = 0;
  for (const float score : scores) sum += std::exp(static_cast<double>(score - maximum));
  const auto log_sum = static_cast<float>(maximum + std::log(sum));
  for (float& score : scores) score -= log_sum;
}

}  // namespace

NgramClassifier learn_experts(const Run& run, const TokenFile& tokens,
                              std::span<const uint64_t> sequences,
                              std::span<const uint16_t> experts) {
  const int64_t length = run.experiment.data.seq_length;
  NgramClassifierOptions options;
  options.num_classes = run.experiment.mixture.experts;
  options.seed = derive_seed(run.experiment.seed, "n-grams");
  const auto read = [&](uint64_t text, std::span<int64_t> prefix) {
    const uint64_t sequence = sequences.empty() ? text : sequences[text];
    tokens.read(static_cast<int64_t>(sequence) * length, prefix);
  };
  return NgramClassifier(read, experts, run.experiment.mixture.prefix_tokens, options);
}

NgramClassifier learn_rounds(const Run& run) {
  const MixtureConfig& mixture = run.experiment.mixture;
  std::vector<uint64_t> sequences;
  std::vector<uint16_t> experts;
  for (int64_t round = mixture.rounds - mixture.rounds_that_teach() + 1; round <= mixture.rounds;
       ++round) {
    const Shards parts = read_shards(run.layout.round(round));
    sequences.insert(sequences.end(), parts.chunk.begin(), parts.chunk.end());
    experts.insert(experts.end(), parts.expert.begin(), parts.expert.end());
  }
  return learn_experts(run, *training_tokens(run), sequences, experts);
}

std::vector<float> rate_sequences(const NgramClassifier& classifier, const TokenFile& tokens,
                                  int64_t seq_length, int64_t prefix, int64_t first,
                                  int64_t count) {
  const auto experts = static_cast<size_t>(classifier.num_classes());
  std::vector<float> scores(static_cast<size_t>(count) * experts);
  std::vector<int64_t> text(static_cast<size_t>(prefix));
  for (int64_t i = 0; i < count; ++i) {
    if (i % 4096 == 0) stop_if_asked();
    tokens.read((first + i) * seq_length, text);
    const auto row = std::span(scores).subspan(static_cast<size_t>(i) * experts, experts);
    classifier.rate(text, row);
    subtract_log_sum(row);
  }
  return scores;
}

}  // namespace smalltalk
