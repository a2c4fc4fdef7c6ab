// explain: why a sequence, or a text, goes to its expert.
#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "jobs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/routing/explanation.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

namespace {

struct ExplainJob {
  std::string run;
  std::string scores;
  std::string shards;
  int64_t sequence = -1;
  std::string text;
  bool json = false;
};

Json to_json(const SequenceExplanation& why, int64_t sequence, const fs::path& shards) {
  Json experts = Json::array();
  for (const ExpertOffer& offer : why.offers) {
    Json row = {{"expert", offer.expert},
                {"score", offer.score},
                {"below_best", why.offers[0].score - offer.score},
                {"capacity", offer.capacity}};
    if (offer.price) row["price"] = *offer.price;
    if (offer.full_after) {
      row["full_after_sequence"] = offer.full_after->sequence;
      row["its_best_score"] = offer.full_after->best_score;
    }
    experts.push_back(row);
  }
  return {{"sequence", sequence},
          {"shards", shards.string()},
          {"method", to_string(why.method)},
          {"expert", why.expert},
          {"best_expert", why.offers[0].expert},
          {"margin", margin_of(why.offers)},
          {"displaced", why.displaced()},
          {"cost", why.cost},
          {"kept", why.kept},
          {"experts", experts}};
}

void print(const SequenceExplanation& why, int64_t sequence) {
  fmt::print("{:>7} {:>12} {:>12}\n", "expert", "score", "below best");
  for (const ExpertOffer& offer : why.offers) {
    std::string note = offer.expert == why.expert ? "  <- assigned" : "";
    if (offer.full_after) {
      note =
          fmt::format("  full: its capacity of {} was reached with sequence {} (best score {:.3f})",
                      offer.capacity, offer.full_after->sequence, offer.full_after->best_score);
    } else if (offer.price) {
      note += fmt::format("  price {:.3f}", *offer.price);
    }
    fmt::print("{:>7} {:>12.4f} {:>12.4f}{}\n", offer.expert, offer.score,
               why.offers[0].score - offer.score, note);
  }
  fmt::print("sequence {}: expert {} ({}), margin {:.4f} nats", sequence, why.expert,
             why.kept ? "kept from an older shard file" : to_string(why.method),
             margin_of(why.offers));
  if (why.displaced()) {
    fmt::print("; displaced from expert {} at a cost of {:.4f} nats", why.offers[0].expert,
               why.cost);
  }
  fmt::print("\n");
}

Json to_json(const TextExplanation& why) {
  Json experts = Json::array();
  for (const ExpertOffer& offer : why.offers) {
    experts.push_back({{"expert", offer.expert}, {"score", offer.score}});
  }
  return {{"tokens", why.num_tokens},
          {"expert", why.offers[0].expert},
          {"margin", margin_of(why.offers)},
          {"experts", experts}};
}

void print(const TextExplanation& why) {
  for (const ExpertOffer& offer : why.offers) {
    fmt::print("{:>7} {:>12.4f}{}\n", offer.expert, offer.score,
               &offer == &why.offers[0] ? "  <- takes it" : "");
  }
  fmt::print("expert {} by {} tokens, margin {:.4f} nats\n", why.offers[0].expert, why.num_tokens,
             margin_of(why.offers));
}

void tell(const ExplainJob& job, const fs::path& shards, const ScoresOf& scores_of) {
  const SequenceExplanation why = explain_sequence(shards, job.sequence, scores_of);
  if (job.json) {
    std::cout << to_json(why, job.sequence, shards).dump() << std::endl;
  } else {
    print(why, job.sequence);
  }
}

void explain(const ExplainJob& job) {
  if (!job.scores.empty()) {
    const ScoreFile file(job.scores);
    tell(job, job.shards, [&](int64_t sequence) {
      const auto row = file.rows(sequence, 1).blocks[0].values;
      return std::vector<float>(row.begin(), row.end());
    });
    return;
  }
  const Run run = open_run(job.run);
  require_mixture(run);
  configure_runtime(run.experiment.device, 0);
  if (job.text.empty()) {
    const fs::path shards = job.shards.empty() ? run.layout.shards() : fs::path(job.shards);
    tell(job, shards, scores_for_shards(run, shards));
    return;
  }
  const TextExplanation why = explain_text(run, job.text);
  if (job.json) {
    std::cout << to_json(why).dump() << std::endl;
  } else {
    print(why);
  }
}

}  // namespace

void add_explain_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("explain", "Say why a sequence, or a text, goes to its expert");
  auto job = std::make_shared<ExplainJob>();
  sub->add_option("run", job->run, "Run folder: its shards and routers");
  sub->add_option("--scores", job->scores, "Instead of a run: the score file given to assign")
      ->excludes("run");
  auto* shards = sub->add_option("--shards", job->shards, "Shard file (default: RUN/shards.h5)");
  auto* sequence = sub->add_option("--sequence", job->sequence, "Id of a training sequence, from 0")
                       ->check(CLI::NonNegativeNumber);
  sub->add_option("--text", job->text, "A text: which expert would take it at inference")
      ->excludes(sequence)
      ->excludes(shards)
      ->excludes("--scores");
  sub->add_flag("--json", job->json, "Print it as one JSON line");
  sub->footer(
      "Prints the score of each expert (log-likelihood of the prefix, nats), the margin of best\n"
      "over second best, and, if the sequence was displaced, which capacities were in the way and\n"
      "what it cost.\n"
      "  smalltalk explain RUN --sequence 1234\n"
      "  smalltalk explain RUN --text 'int main() {'\n"
      "  smalltalk explain --scores scores.h5 --shards shards.h5 --sequence 7");
  sub->callback([&run, job] {
    run = [job] {
      const bool from_scores = !job->scores.empty();
      if (from_scores ? job->shards.empty() || job->sequence < 0
                      : job->run.empty() || (job->sequence < 0) == job->text.empty()) {
        std::cerr << "explain: give RUN and --sequence or --text, or --scores, --shards and "
                     "--sequence\n";
        return kExitUsage;
      }
      return run_alone("explain", [&] { explain(*job); });
    };
  });
}

}  // namespace smalltalk
