// explain: why a sequence, or a text, goes to its expert.
#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "jobs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/routing/scoring.hpp"
#include "smalltalk/mixture/run/provenance.hpp"

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

// Where the scores of a sequence come from.
using ScoresOf = std::function<std::vector<float>(int64_t sequence)>;

std::vector<Transformer> load_routers(const Run& run) {
  std::vector<Transformer> routers;
  for (int64_t e = 0; e < run.experiment.mixture.experts; ++e) {
    routers.push_back(Transformer::load(run.layout.router(e), run.experiment.device));
  }
  return routers;
}

// Experts from best to worst, ties by expert.
std::vector<int64_t> ranking(const std::vector<float>& scores) {
  std::vector<int64_t> experts(scores.size());
  std::iota(experts.begin(), experts.end(), int64_t{0});
  std::stable_sort(experts.begin(), experts.end(), [&](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  return experts;
}

double margin_of(const std::vector<float>& scores, const std::vector<int64_t>& ranked) {
  if (ranked.size() < 2) return 0;
  return static_cast<double>(scores[static_cast<size_t>(ranked[0])]) -
         static_cast<double>(scores[static_cast<size_t>(ranked[1])]);
}

// All that can be said of a sequence of a shard file.
Json explain_sequence(int64_t sequence, const fs::path& path, const ScoresOf& scores_of) {
  const ShardInfo info = read_shard_info(path);
  if (sequence >= info.num_sequences) {
    throw Error(fmt::format("there is no sequence {} in {}: it holds {}", sequence, path.string(),
                            info.num_sequences));
  }
  if (info.has_chunk) {
    throw Error(path.string() + " is of one round of the EM, whose scores are not kept");
  }
  const int64_t assigned = read_expert(path, sequence);
  const std::vector<float> scores = scores_of(sequence);
  if (static_cast<int64_t>(scores.size()) != info.num_experts()) {
    throw Error(fmt::format("{} is of {} experts, the scores are of {}", path.string(),
                            info.num_experts(), scores.size()));
  }
  const std::vector<int64_t> ranked = ranking(scores);
  const double best = scores[static_cast<size_t>(ranked[0])];
  const bool kept = sequence < info.kept_sequences;
  Json experts = Json::array();
  bool better = true;  // than the assigned one
  for (const int64_t e : ranked) {
    if (e == assigned) better = false;
    const double score = scores[static_cast<size_t>(e)];
    Json row = {{"expert", e}, {"score", score}, {"below_best", best - score}};
    row["capacity"] = info.rule.capacities.empty() ? info.size_of(e)
                                                   : info.rule.capacities[static_cast<size_t>(e)];
    if (!info.rule.prices.empty()) row["price"] = info.rule.prices[static_cast<size_t>(e)];
    for (const Closing& closing : info.rule.closings) {
      if (closing.expert != e || !better || kept) continue;
      const auto last = static_cast<int64_t>(closing.key.sequence);
      const std::vector<float> its = scores_of(last);
      row["full_after_sequence"] = last;
      row["its_best_score"] = *std::max_element(its.begin(), its.end());
    }
    experts.push_back(row);
  }
  return {{"sequence", sequence},
          {"shards", path.string()},
          {"method", to_string(info.rule.method)},
          {"expert", assigned},
          {"best_expert", ranked[0]},
          {"margin", margin_of(scores, ranked)},
          {"displaced", assigned != ranked[0]},
          {"cost", best - static_cast<double>(scores[static_cast<size_t>(assigned)])},
          {"kept", kept},
          {"experts", experts}};
}

void print_sequence(const Json& about) {
  fmt::print("{:>7} {:>12} {:>12}\n", "expert", "score", "below best");
  for (const Json& row : about["experts"]) {
    std::string note = row["expert"] == about["expert"] ? "  <- assigned" : "";
    if (row.contains("full_after_sequence")) {
      note =
          fmt::format("  full: its capacity of {} was reached with sequence {} (best score {:.3f})",
                      row["capacity"].get<int64_t>(), row["full_after_sequence"].get<int64_t>(),
                      row["its_best_score"].get<double>());
    } else if (row.contains("price")) {
      note += fmt::format("  price {:.3f}", row["price"].get<double>());
    }
    fmt::print("{:>7} {:>12.4f} {:>12.4f}{}\n", row["expert"].get<int64_t>(),
               row["score"].get<double>(), row["below_best"].get<double>(), note);
  }
  const std::string how = about["kept"].get<bool>() ? "kept from an older shard file"
                                                    : about["method"].get<std::string>();
  fmt::print("sequence {}: expert {} ({}), margin {:.4f} nats", about["sequence"].get<int64_t>(),
             about["expert"].get<int64_t>(), how, about["margin"].get<double>());
  if (about["displaced"].get<bool>()) {
    fmt::print("; displaced from expert {} at a cost of {:.4f} nats",
               about["best_expert"].get<int64_t>(), about["cost"].get<double>());
  }
  fmt::print("\n");
}

Json explain_text(const ExplainJob& job, const Run& run) {
  std::vector<int64_t> tokens = {kEndToken};  // a text begins where another one ended
  for (const int32_t token : Tokenizer(run.layout.tokenizer()).encode(job.text)) {
    tokens.push_back(token);
  }
  if (tokens.size() < 2) throw Error("the text is too short: routers need at least 2 tokens");
  tokens.resize(std::min(tokens.size(), static_cast<size_t>(run.experiment.mixture.prefix_tokens)));
  std::vector<float> scores;
  for (const Transformer& router : load_routers(run)) {
    scores.push_back(static_cast<float>(log_likelihood(router, tokens)));
  }
  const std::vector<int64_t> ranked = ranking(scores);
  Json experts = Json::array();
  for (const int64_t e : ranked) {
    experts.push_back({{"expert", e}, {"score", scores[static_cast<size_t>(e)]}});
  }
  return {{"tokens", tokens.size()},
          {"expert", ranked[0]},
          {"margin", margin_of(scores, ranked)},
          {"experts", experts}};
}

void print_text(const Json& about) {
  for (const Json& row : about["experts"]) {
    fmt::print("{:>7} {:>12.4f}{}\n", row["expert"].get<int64_t>(), row["score"].get<double>(),
               row["expert"] == about["expert"] ? "  <- takes it" : "");
  }
  fmt::print("expert {} by {} tokens, margin {:.4f} nats\n", about["expert"].get<int64_t>(),
             about["tokens"].get<size_t>(), about["margin"].get<double>());
}

// Scores of a run's sequences by its routers, on the prefix that the shards were made with.
ScoresOf scores_by_routers(const Run& run, const fs::path& shards) {
  const auto made_from = read_shard_info(shards).provenance;
  const auto routers_of_shards = made_from.find("routers");
  if (routers_of_shards != made_from.end() && routers_of_shards->second != routers_hash(run)) {
    throw Error(fmt::format("{} was made with other routers than those in {}", shards.string(),
                            run.layout.routers_folder().string()));
  }
  const auto found = made_from.find("prefix_tokens");
  const int64_t longest = run.experiment.mixture.prefix_tokens;
  const int64_t prefix = found == made_from.end() ? longest : std::stoll(found->second);
  return [routers = std::make_shared<std::vector<Transformer>>(load_routers(run)),
          tokens = std::make_shared<const TokenFile>(run.layout.tokens("train")),
          prefixes = std::vector<int64_t>{prefix, longest},
          length = run.experiment.data.seq_length](int64_t sequence) {
    const auto id = static_cast<uint64_t>(sequence);
    std::vector<float> scores;
    for (const Transformer& router : *routers) {
      scores.push_back(score_sequences(router, tokens, {&id, 1}, length, prefixes)[0]);
    }
    return scores;
  };
}

int explain(const ExplainJob& job) {
  Json about;
  if (!job.scores.empty()) {
    const auto file = std::make_shared<ScoreFile>(job.scores);
    about = explain_sequence(job.sequence, job.shards, [file](int64_t sequence) {
      const auto row = file->rows(sequence, 1).blocks[0].values;
      return std::vector<float>(row.begin(), row.end());
    });
  } else {
    const Run run = open_run(job.run);
    configure_runtime(run.experiment.device, 0);
    if (!job.text.empty()) {
      about = explain_text(job, run);
    } else {
      const fs::path shards = job.shards.empty() ? run.layout.shards() : fs::path(job.shards);
      about = explain_sequence(job.sequence, shards, scores_by_routers(run, shards));
    }
  }
  if (job.json) {
    std::cout << about.dump() << std::endl;
  } else if (about.contains("tokens")) {
    print_text(about);
  } else {
    print_sequence(about);
  }
  return kExitDone;
}

}  // namespace

void add_explain_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("explain", "Say why a sequence, or a text, goes to its expert");
  auto job = std::make_shared<ExplainJob>();
  sub->add_option("run", job->run, "Run folder: its shards and routers");
  sub->add_option("--scores", job->scores, "Instead of a run: the score file given to assign")
      ->excludes("run");
  sub->add_option("--shards", job->shards, "Shard file (default: RUN/shards.h5)");
  auto* sequence = sub->add_option("--sequence", job->sequence, "Id of a training sequence, from 0")
                       ->check(CLI::NonNegativeNumber);
  sub->add_option("--text", job->text, "A text: which expert would take it at inference")
      ->excludes(sequence)
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
      try {
        return explain(*job);
      } catch (const std::exception& error) {
        std::cerr << "[explain] error: " << error.what() << "\n";
        return kExitFailure;
      }
    };
  });
}

}  // namespace smalltalk
