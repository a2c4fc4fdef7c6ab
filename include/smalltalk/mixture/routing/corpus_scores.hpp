// The scores of the training sequences under the finished routers, kept in the run's score store
// (data/score_store.hpp): the ranks compute together what is missing there, by blocks of sequences,
// and each reads the rows of its slice. Or, with mixture.sharding = ngrams, log-probabilities of
// the experts by n-grams (ngram_routing.hpp), which are kept nowhere.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/data/score_store.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// Which scores.
struct ScoreQuery {
  std::vector<std::string> routers;  // [E] hashes of their weights
  int64_t prefix = 0;                // one of kept_prefixes()
  int64_t first_sequence = 0;        // those before are not asked for
};

struct CorpusScores {
  LocalScores<float> mine;            // of this rank's slice, whole blocks, E experts
  std::vector<StoredScores> storage;  // that `mine` lies in, or
  std::vector<float> rated;           // where n-grams have given the scores
  int64_t known = 0;                  // scores of all sequences that the store had
  int64_t computed = 0;               // and those that it lacked
};

// Collective. Throws Stopped, on all ranks, if any of them was asked to stop; what was computed by
// then is kept.
CorpusScores corpus_scores(const Run& run, const ScoreQuery& query, const HostCollectives& world);

// The prefix lengths at which scores are kept: `longest`, and its halves, quarters and eighths as
// long as they are 8 tokens or more. Ascending.
std::vector<int64_t> kept_prefixes(int64_t longest);

// The tokens that a block of the store was scored on, as a hash.
uint64_t hash_of_sequences(const TokenFile& tokens, int64_t first, int64_t count,
                           int64_t seq_length);

}  // namespace smalltalk
