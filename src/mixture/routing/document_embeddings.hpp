// By what training documents are compared: a vector each, in three ways. All are collective, and
// give every rank those of all documents, the same bytes for any number of ranks and threads.
// Documents are without the tokens that end them; one without tokens has a vector of zeros.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// Vectors of length 1, [documents, dimensions].
struct Embeddings {
  std::vector<float> values;
  int64_t dimensions = 0;
};

// TF-IDF and SVD (text_clusters.hpp).
Embeddings embed_by_words(const Run& run, const TokenFile& tokens, const HostCollectives& ranks,
                          int64_t dimensions);

// The mean over a document's tokens of a trained model's hidden states (hidden_states.hpp). What is
// longer than the sequences of the model's training is read piece by piece, each as if nothing came
// before. On the run's device. Errors: no model of this program; one of another tokenizer than the
// tokens; hidden states that are not finite.
Embeddings embed_by_model(const Run& run, const TokenFile& tokens, const HostCollectives& ranks,
                          const std::filesystem::path& model);

// Those of a file (vector_file.hpp). Error: it holds another number of them.
Embeddings read_embeddings(const std::filesystem::path& path, int64_t documents,
                           const HostCollectives& ranks);

}  // namespace smalltalk
