#include "smalltalk/mixture/routing/document_order.hpp"

#include <fmt/format.h>

#include <string>

#include "mixture/routing/document_embeddings.hpp"
#include "smalltalk/core/assignment/greedy_path.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/neighbours.hpp"
#include "smalltalk/data/order_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/provenance.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// How an order is made, as its file says; of vectors and models their content, wherever they lie.
std::string method_of(const Run& run, const OrderOptions& options) {
  std::string embeddings =
      fmt::format("TF-IDF in {} dimensions, seed {}", options.dimensions, run.experiment.seed);
  if (!options.vectors.empty()) embeddings = fmt::format("vectors {}", hash_file(options.vectors));
  if (!options.model.empty()) {
    embeddings = fmt::format("mean hidden states of model {}", weights_hash(options.model));
  }
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
  std::string method;  // on rank 0
  bool there = false;
  run_together(ranks, [&] {
    if (ranks.rank != 0) return;
    method = method_of(run, options);
    there = is_there(path, tokens.info().content_hash, method, keeps_any);
  });
  if (first_rank_says(there, ranks)) {
    log_info("the order of the documents is complete");
    return;
  }
  const int64_t documents = tokens.info().num_documents;
  const auto embed = [&] {
    if (!options.model.empty()) return embed_by_model(run, tokens, ranks, options.model);
    if (!options.vectors.empty()) return read_embeddings(options.vectors, documents, ranks);
    return embed_by_words(run, tokens, ranks, options.dimensions);
  };
  const Embeddings embeddings = embed();
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
