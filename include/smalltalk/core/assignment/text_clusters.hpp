// Texts by the words in them: TF-IDF, truncated SVD, and clusters by balanced k-means. How c-BTM
// shards a corpus (Gururangan et al., "Scaling Expert Language Models with Unsupervised Domain
// Discovery", 2023), and here a control: what must routers know that counts of words do not?
//
// Terms are token ids. Sequences are ranges of tokens, which nobody has to decode; the tokenizer is
// that of the models; and where c-BTM removes stop words, a frequent token has a low idf.
// TF-IDF is sklearn's default, TF (ln((1 + N) / (1 + DF)) + 1) scaled to length 1. The SVD is a
// randomised subspace iteration (Halko, Martinsson, Tropp, SIAM Review 2011). An embedding is the
// text's coordinates in it, scaled to length 1; the similarity to a centre is the cosine, so that
// it is a score like any other: higher is better, and a balanced assignment takes it as it is.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace smalltalk {

// What embeds texts.
struct TextSpace {
  std::vector<float> idf;         // [V]
  std::vector<float> projection;  // [V, d], orthonormal columns, the largest singular value first

  int64_t vocab_size() const { return std::ssize(idf); }
  int64_t dimensions() const { return std::ssize(projection) / vocab_size(); }
};

struct TextClusters : TextSpace {
  std::vector<float> centres;  // [E, d], each of length 1

  int64_t num_clusters() const { return std::ssize(centres) / dimensions(); }
};

struct TextSpaceOptions {
  int64_t vocab_size = 0;
  uint64_t seed = 0;
  int64_t dimensions = 100;    // fewer if the texts have a lower rank
  int64_t max_sample = 50000;  // texts that the space is found with, drawn uniformly
  int threads = 1;
};

struct TextClusterOptions : TextSpaceOptions {
  int64_t num_clusters = 0;
  int64_t iterations = 20;  // of k-means at most
};

// The tokens of a text.
using ReadText = std::function<std::vector<int64_t>(uint64_t text)>;

// A function of texts, options and seed; threads do not show. Holds of the sample 8 bytes for each
// term of each text; 24 bytes V (d + 10). Error: no text, a token outside the vocabulary. Throws
// Stopped if this process is asked to stop.
TextSpace text_space(const ReadText& read, int64_t num_texts, const TextSpaceOptions& options);

// Fills in the tokens of a sequence.
using ReadSequence = std::function<void(uint64_t sequence, std::span<int64_t> tokens)>;

// Each step of the k-means gives every cluster an equal share of the sample, at the largest total
// similarity. A function of text, options and seed; threads do not show. Holds of the sample
// 8 bytes for each term of each sequence and 4 (d + E) a sequence; 24 bytes V (d + 10). Error:
// fewer sequences than clusters, a token outside the vocabulary. Throws Stopped if this process is
// asked to stop; nothing is kept.
TextClusters cluster_texts(const ReadSequence& read, int64_t num_sequences, int64_t seq_length,
                           const TextClusterOptions& options);

// FLOPs at most: no term of a text twice, no step of the k-means left out. Its assignments, which
// are comparisons, do not count.
double cluster_flops(int64_t num_sequences, int64_t seq_length, const TextClusterOptions& options);
// Of rate_clusters() for a text of so many tokens, at most.
double choice_flops(const TextClusters& clusters, int64_t num_tokens);

// A text's terms, ascending, and their TF-IDF weights.
struct TextVector {
  std::vector<uint32_t> terms;
  std::vector<float> weights;
};
TextVector tfidf(std::span<const int64_t> tokens, std::span<const float> idf);

// The text's embedding [d]; zero if it has no term of the sample.
std::vector<float> embed(const TextSpace& space, std::span<const int64_t> tokens);
// Its cosine with each centre, into `similarities` [E].
void rate_clusters(const TextClusters& clusters, std::span<const int64_t> tokens,
                   std::span<float> similarities);

}  // namespace smalltalk
