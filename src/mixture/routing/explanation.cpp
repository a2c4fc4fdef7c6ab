#include "smalltalk/mixture/routing/explanation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/mixture/routing/ngram_routing.hpp"
#include "smalltalk/mixture/routing/scoring.hpp"
#include "smalltalk/mixture/run/provenance.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

std::vector<Transformer> load_routers(const Run& run) {
  std::vector<Transformer> routers;
  for (int64_t e = 0; e < run.experiment.mixture.experts; ++e) {
    routers.push_back(Transformer::load(run.layout.router(e), run.experiment.device));
  }
  return routers;
}

std::vector<ExpertOffer> best_first(std::span<const float> scores) {
  std::vector<ExpertOffer> offers;
  for (const float score : scores) offers.push_back({std::ssize(offers), score, 0, {}, {}});
  std::ranges::stable_sort(offers, std::greater(), &ExpertOffer::score);
  return offers;
}

}  // namespace

double margin_of(std::span<const ExpertOffer> offers) {
  return offers.size() < 2 ? 0 : offers[0].score - offers[1].score;
}

SequenceExplanation explain_sequence(const fs::path& shards, int64_t sequence,
                                     const ScoresOf& scores_of) {
  const ShardInfo info = read_shard_info(shards);
  if (sequence >= info.num_sequences) {
    throw Error(fmt::format("there is no sequence {} in {}: it holds {}", sequence, shards.string(),
                            info.num_sequences));
  }
  if (info.has_chunk) {
    throw Error(shards.string() + " is of one round of the EM, whose scores are not kept");
  }
  SequenceExplanation explanation;
  explanation.expert = read_expert(shards, sequence);
  explanation.method = info.rule.method;
  explanation.kept = sequence < info.kept_sequences;
  explanation.offers = best_first(scores_of(sequence));
  if (std::ssize(explanation.offers) != info.num_experts()) {
    throw Error(fmt::format("{} is of {} experts, the scores are of {}", shards.string(),
                            info.num_experts(), explanation.offers.size()));
  }
  bool better = !explanation.kept;  // than the expert that it was given to, when they were asked
  for (ExpertOffer& offer : explanation.offers) {
    const auto e = static_cast<size_t>(offer.expert);
    if (offer.expert == explanation.expert) {
      better = false;
      explanation.cost = explanation.offers[0].score - offer.score;
    }
    offer.capacity =
        info.rule.capacities.empty() ? info.size_of(offer.expert) : info.rule.capacities[e];
    if (!info.rule.prices.empty()) offer.price = info.rule.prices[e];
    for (const Closing& closing : info.rule.closings) {
      if (!better || closing.expert != offer.expert) continue;
      const auto last = static_cast<int64_t>(closing.key.sequence);
      offer.full_after = {last, std::ranges::max(scores_of(last))};
    }
  }
  return explanation;
}

ScoresOf scores_for_shards(const Run& run, const fs::path& shards) {
  const auto made_from = read_shard_info(shards).provenance;
  const auto routers_of_shards = made_from.find("routers");
  if (routers_of_shards != made_from.end() && routers_of_shards->second != routers_hash(run)) {
    throw Error(fmt::format("{} was made with other routers than those in {}", shards.string(),
                            run.layout.routers_folder().string()));
  }
  const auto found = made_from.find("prefix_tokens");
  const int64_t longest = run.experiment.mixture.prefix_tokens;
  const int64_t prefix = found == made_from.end() ? longest : std::stoll(found->second);
  if (value_of(made_from, "scored_by") == to_string(Sharding::ngrams)) {
    return [classifier = std::make_shared<NgramClassifier>(learn_rounds(run)),
            tokens = training_tokens(run), prefix,
            length = run.experiment.data.seq_length](int64_t sequence) {
      return rate_sequences(*classifier, *tokens, length, prefix, sequence, 1);
    };
  }
  return [routers = std::make_shared<std::vector<Transformer>>(load_routers(run)),
          tokens = training_tokens(run), prefixes = std::vector<int64_t>{prefix, longest},
          length = run.experiment.data.seq_length](int64_t sequence) {
    const auto id = static_cast<uint64_t>(sequence);
    std::vector<float> scores;
    for (const Transformer& router : *routers) {
      scores.push_back(score_sequences(router, tokens, {&id, 1}, length, prefixes)[0]);
    }
    return scores;
  };
}

TextExplanation explain_text(const Run& run, const std::string& text) {
  std::vector<int64_t> tokens = {kEndToken};  // a text begins where another one ended
  for (const int32_t token : Tokenizer(run.layout.tokenizer()).encode(text)) {
    tokens.push_back(token);
  }
  if (tokens.size() < 2) throw Error("the text is too short: routers need at least 2 tokens");
  tokens.resize(std::min(tokens.size(), static_cast<size_t>(run.experiment.mixture.prefix_tokens)));
  std::vector<float> scores;
  for (const Transformer& router : load_routers(run)) {
    scores.push_back(static_cast<float>(log_likelihood(router, tokens)));
  }
  return {std::ssize(tokens), best_first(scores)};
}

}  // namespace smalltalk
