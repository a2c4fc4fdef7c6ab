// Why a sequence of a shard file, or a text, goes to its expert.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// What an expert is to a sequence.
struct ExpertOffer {
  int64_t expert = 0;
  double score = 0;             // nats
  int64_t capacity = 0;         // of its shard; a text is routed without
  std::optional<double> price;  // by an optimal assignment
  // The sequence that took the last place of a better expert than the one it was given to.
  struct Last {
    int64_t sequence = 0;
    double best_score = 0;
  };
  std::optional<Last> full_after;
};

// By how much the best expert leads, nats; 0 if there is only one. REQUIRES the best offers first.
double margin_of(std::span<const ExpertOffer> offers);

struct SequenceExplanation {
  int64_t expert = 0;  // that it was given to
  AssignmentMethod method = AssignmentMethod::greedy;
  bool kept = false;                // taken over from an older shard file
  double cost = 0;                  // below the best score, nats
  std::vector<ExpertOffer> offers;  // [E] best score first, ties by expert

  bool displaced() const { return expert != offers[0].expert; }
};

// The scores of a sequence. [E]
using ScoresOf = std::function<std::vector<float>(int64_t sequence)>;

// Errors: no such sequence; a round's shard file, whose scores are not kept; scores of another
// number of experts.
SequenceExplanation explain_sequence(const std::filesystem::path& shards, int64_t sequence,
                                     const ScoresOf& scores_of);

// Scores by whom the shards were made with, the run's routers or n-grams, on the prefix that they
// were made with. Error: they were made with other routers.
ScoresOf scores_for_shards(const Run& run, const std::filesystem::path& shards);

struct TextExplanation {
  int64_t num_tokens = 0;           // that the routers saw, with the end token before the text
  std::vector<ExpertOffer> offers;  // [E] as above; the first takes it
};

// Error: the text is empty.
TextExplanation explain_text(const Run& run, const std::string& text);

}  // namespace smalltalk
