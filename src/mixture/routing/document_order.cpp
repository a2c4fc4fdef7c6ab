#include "smalltalk/mixture/routing/document_order.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/greedy_path.hpp"
#include "smalltalk/core/assignment/text_clusters.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/neighbours.hpp"
#include "smalltalk/data/order_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/data/vector_file.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kEmbedded = 4096;  // documents between two lines of progress

// Vectors of length 1 of all documents, [documents, dimensions].
struct Embeddings {
  std::vector<float> values;
  int64_t dimensions = 0;
};

// The documents of a token file, without the tokens that end them.
class Documents {
 public:
  explicit Documents(const TokenFile& tokens) : tokens_(tokens), ends_(tokens.document_ends()) {}

  std::vector<int64_t> operator()(uint64_t document) const {
    const uint64_t begin = document == 0 ? 0 : ends_[document - 1];
    std::vector<int64_t> text(ends_[document] - begin - 1);
    tokens_.read(static_cast<int64_t>(begin), text);
    return text;
  }
  int64_t size() const { return std::ssize(ends_); }

 private:
  const TokenFile& tokens_;
  std::vector<uint64_t> ends_;
};

// Rank 0's, on all ranks. Collective.
void share(std::vector<float>& values, const HostCollectives& ranks) {
  auto size = static_cast<uint64_t>(values.size());
  ranks.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  values.resize(size);
  ranks.broadcast(std::as_writable_bytes(std::span(values)), 0);
}

Embeddings embed_by_words(const Run& run, const TokenFile& tokens, const HostCollectives& ranks,
                          const OrderOptions& options) {
  const Documents documents(tokens);
  const int threads = static_cast<int>(run.experiment.device.threads);
  TextSpace space;
  run_together(ranks, [&] {
    if (ranks.rank != 0) return;
    log_info(fmt::format("TF-IDF and SVD of {} documents", documents.size()));
    TextSpaceOptions wanted;
    wanted.vocab_size = tokens.info().vocab_size;
    wanted.seed = derive_seed(run.experiment.seed, "document order");
    wanted.dimensions = options.dimensions;
    wanted.threads = threads;
    space = text_space(documents, documents.size(), wanted);
  });
  share(space.idf, ranks);
  share(space.projection, ranks);

  const auto [first, end] = part_of_range(documents.size(), ranks.rank, ranks.size);
  const int64_t dimensions = space.dimensions();
  std::vector<float> mine(static_cast<size_t>((end - first) * dimensions));
  run_together(ranks, [&, begin = first, last = end] {
    Progress progress("embeddings", last - begin, "documents");
    for (int64_t from = begin; from < last; from += kEmbedded) {
      const int64_t count = std::min(kEmbedded, last - from);
      parallel_for(count, threads, [&](int64_t i) {
        stop_if_asked();
        const std::vector<float> one = embed(space, documents(static_cast<uint64_t>(from + i)));
        std::ranges::copy(one, mine.begin() + (from + i - begin) * dimensions);
      });
      progress.update(from + count - begin);
    }
  });
  return {gather_values<float>(mine, ranks), dimensions};
}

void scale_to_length_1(std::span<float> vector) {
  double squares = 0;
  for (const float value : vector) squares += static_cast<double>(value) * value;
  if (squares == 0) return;
  const double length = std::sqrt(squares);
  for (float& value : vector) value = static_cast<float>(value / length);
}

Embeddings read_embeddings(const fs::path& path, int64_t documents, const HostCollectives& ranks) {
  const VectorFileInfo info = read_vector_info(path);
  if (info.num_vectors != documents) {
    throw Error(fmt::format("{} holds {} vectors, for {} training documents", path.string(),
                            info.num_vectors, documents));
  }
  const auto [first, end] = part_of_range(documents, ranks.rank, ranks.size);
  std::vector<float> mine = read_vectors(path, first, end - first);
  const auto dimensions = static_cast<size_t>(info.dimensions);
  for (size_t at = 0; at < mine.size(); at += dimensions) {
    scale_to_length_1(std::span(mine).subspan(at, dimensions));
  }
  return {gather_values<float>(mine, ranks), info.dimensions};
}

// How an order is made, as its file says; for vectors their content, wherever they lie.
std::string method_of(const Run& run, const HostCollectives& ranks, const OrderOptions& options) {
  std::string vectors(16, ' ');
  if (!options.vectors.empty()) {
    run_together(ranks, [&] {
      if (ranks.rank == 0) vectors = hash_file(options.vectors);
    });
    ranks.broadcast(std::as_writable_bytes(std::span(vectors)), 0);
  }
  const std::string embeddings =
      options.vectors.empty()
          ? fmt::format("TF-IDF in {} dimensions, seed {}", options.dimensions, run.experiment.seed)
          : fmt::format("vectors {}", vectors);
  return fmt::format("{}, {} neighbours", embeddings, options.neighbours);
}

// Whether the file that is there is the order that is wanted. Error: it is another one.
bool is_there(const fs::path& path, const std::string& tokens, const std::string& method,
              bool keeps_any) {
  if (!fs::exists(path)) return false;
  const Provenance made = read_order(path).provenance;
  const std::string advice = fmt::format(
      ": delete {} and all that was made from it, or choose another run folder", path.string());
  if (value_of(made, "tokens") != tokens) {
    throw Error(fmt::format("{} was made from other tokens{}", path.string(), advice));
  }
  if (!keeps_any && value_of(made, "made_by") != method) {
    throw Error(fmt::format("{} was made by {}, not by {}{}", path.string(),
                            value_of(made, "made_by"), method, advice));
  }
  return true;
}

}  // namespace

void make_order(const Run& run, const HostCollectives& ranks, const OrderOptions& options,
                bool keeps_any) {
  const double start = now_seconds();
  const fs::path path = run.layout.order();
  const TokenFile tokens(run.layout.tokens("train"));
  const std::string method = method_of(run, ranks, options);
  bool there = false;
  run_together(ranks, [&] {
    if (ranks.rank == 0) there = is_there(path, tokens.info().content_hash, method, keeps_any);
  });
  if (first_rank_says(there, ranks)) {
    log_info("the order of the documents is complete");
    return;
  }
  const int64_t documents = tokens.info().num_documents;
  const Embeddings embeddings = options.vectors.empty()
                                    ? embed_by_words(run, tokens, ranks, options)
                                    : read_embeddings(options.vectors, documents, ranks);
  NeighbourOptions wanted;
  wanted.count = options.neighbours;
  wanted.seed = run.experiment.seed;
  wanted.threads = static_cast<int>(run.experiment.device.threads);
  const Neighbours neighbours =
      nearest_neighbours(embeddings.values, embeddings.dimensions, wanted, ranks);
  if (ranks.rank == 0) {
    const GreedyPath order = greedy_path(neighbours);
    write_order(path, order.points,
                {{"tokens", tokens.info().content_hash},
                 {"made_by", method},
                 {"restarts", std::to_string(order.restarts)},
                 {"seed", std::to_string(run.experiment.seed)}});
    log_info(fmt::format("ordered {} documents by {}, with {} restarts, in {:.1f} s", documents,
                         method, order.restarts, now_seconds() - start));
  }
  ranks.barrier();
}

}  // namespace smalltalk
