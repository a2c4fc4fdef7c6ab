// What a trained mixture is worth under many ways to choose among its experts, beside the models
// that it is compared with: one table, with an interval for each difference.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/mixture/evaluation/bootstrap.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

struct CompareOptions {
  std::string split = "test";     // or other text whose tokens are there
  std::string reference;          // "dense", "mixture", ...; empty: the first dense model, or the
                                  // mixture where there is none
  std::vector<int64_t> prefixes;  // tokens; empty: default_prefixes(); M is always one
  std::set<int64_t> steps;        // also checkpoints of these, for models that are trained longer
  std::vector<double> temperatures = {1};  // of ensembles
  int64_t resamples = 2000;
};

// 8, 16, 32, ... up to S, the routers' M among them. Ascending.
std::vector<int64_t> default_prefixes(const Experiment& experiment);

// The cells that a comparison reads, those of evaluate among them.
std::vector<EvalCell> compare_cells(const Experiment& experiment,
                                    const std::vector<TrainUnit>& units,
                                    const CompareOptions& options);

// Those of checkpoints: of each unit that is trained beyond the step.
std::vector<EvalCell> checkpoint_cells(const std::vector<TrainUnit>& units,
                                       const std::string& split, const std::set<int64_t>& steps);

// Rules that are not in the table alone.
inline constexpr const char* kByRouters = "routers";  // as a mixture is trained to be used
inline constexpr const char* kByNgrams = "n-grams";
inline constexpr const char* kInHindsight = "best in hindsight";

struct ComparedRow {
  const ModelKind* kind = nullptr;  // of the model
  std::string rule;                 // how its experts are chosen; empty: it is one model
  int64_t prefix = 0;               // tokens that it sees before; 0: none
  int64_t experts = 1;              // that predict the next token together
  double temperature = 0;           // of an ensemble's weights
  int64_t step = 0;                 // of its checkpoints; 0: trained to the end
  double nats_per_token = 0, perplexity = 0, bits_per_byte = 0;
  double flops_per_sequence = 0;  // of inference, choosing included
  Interval difference = {};       // of nats per token, from the reference
};

// What one run has to compare, with all that a difference from a row of any other run needs.
struct RunRows {
  std::vector<ComparedRow> rows;                     // without differences
  std::vector<std::vector<double>> log_likelihoods;  // [rows][N] of a sequence's S targets, nats
  std::vector<uint64_t> documents;                   // [N] a sequence's, of its first token
  std::vector<double> targets;                       // [N] a sequence's, without padding
  int64_t seq_length = 0;                            // S
  std::string tokens;                                // hash of the split's text
};

// REQUIRES the cells to be complete. Rules: the routers and the experts themselves (argmax over
// prefixes), a linear classifier of the prefix's n-grams that has learned from the shards
// (ngram_classifier.hpp; where the training tokens are still there), the best expert in hindsight,
// sequences in turn, domain labels (the expert that is best on the domain in the validation split),
// and ensembles: of all with equal weights, and of the k that the routers' posterior at M prefers,
// k = 2, 4, ... E. Error: the mixture does not belong together, an option that makes no sense.
RunRows compared_rows(const Run& run, const std::vector<TrainUnit>& units,
                      const CompareOptions& options);

// Nats per token by which the one loses more than the other on the sequences of `run`, and the
// interval when its documents are drawn anew.
Interval difference_of(std::span<const double> log_likelihoods, std::span<const double> reference,
                       const RunRows& run, int64_t resamples, uint64_t seed);

struct Comparison {
  std::string split, reference;
  int64_t num_sequences = 0, num_documents = 0;
  std::vector<ComparedRow> rows;
};

// The rows with their differences from the reference. The bootstrap draws documents.
Comparison compare(const Run& run, const std::vector<TrainUnit>& units,
                   const CompareOptions& options);

std::string comparison_json(const Comparison& comparison);
// The same for people, aligned; `markdown` for a README.
std::string comparison_table(const Comparison& comparison, bool markdown);

}  // namespace smalltalk
