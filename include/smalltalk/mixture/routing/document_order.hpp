// Similarity-based batching: the order in which a run reads its training documents, so that those
// of one sequence are alike (greedy_path.hpp). What is alike is told by embeddings: TF-IDF and SVD
// of the tokens (text_clusters.hpp), the hidden states of a trained model, or vectors that another
// program made.
#pragma once

#include <cstdint>
#include <filesystem>

#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

struct OrderOptions {
  // At most one of these; neither: by TF-IDF.
  std::filesystem::path vectors;  // of all training documents (vector_file.hpp)
  std::filesystem::path model;    // the folder of a router, an expert or a dense model
  int64_t dimensions = 100;       // of the embeddings by TF-IDF
  int64_t neighbours = 20;        // of each document
};

// Makes RUN/order.h5 from the tokens. Does nothing if it is there and made from the same tokens in
// the same way, or if `keeps_any`, in whatever way. The same bytes for any number of ranks and
// threads. Each rank holds the embeddings of all documents, twice. Collective. Error: the file that
// is there was made otherwise; vectors of another number than the documents; a model that cannot be
// loaded, or of another tokenizer than the tokens. Throws Stopped, on all ranks, if any of them was
// asked to stop.
void make_order(const Run& run, const HostCollectives& ranks, const OrderOptions& options = {},
                bool keeps_any = false);

}  // namespace smalltalk
