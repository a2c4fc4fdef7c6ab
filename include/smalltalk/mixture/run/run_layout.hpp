// Where everything lies in a run folder. The one place that knows these names.
//
//   experiment.toml                 the resolved experiment
//   tokens/tokenizer.model  tokens/train.h5  tokens/validation.h5  tokens/test.h5
//   tokens/<split>.h5.seen          when the text behind it was last seen, see data/README.md
//   tokens/<name>.h5                other text that models are compared on
//   order.h5                        the order of the training documents, with data.order = similar
//   rounds/round-001.h5 ...         the assignment of each round of the EM, and beside it
//   rounds/round-001.json           its line of the log, written last: says that the round is known
//   routing.jsonl                   one line a round, see router_em.hpp
//   routers/<e>/                    config.json, model.safetensors, metrics.jsonl, checkpoints/
//   scores/                         routers' scores of the training text, see score_store.hpp
//   shards/<hash>.h5                shard files; none is ever written again
//   shards.h5  random_shards.h5  tfidf_shards.h5   links to the current ones of the experts and of
//                                   the controls
//   tfidf/<hash>.safetensors        the clusters behind tfidf_shards.h5, see tfidf.hpp
//   sharding.json                   what the assignment did
//   experts/<e>/                    config.json, model.safetensors, metrics.jsonl, training.json,
//                                   tensorboard/ and trace.json if asked for,
//                                   checkpoints/step-<n>.safetensors and a link latest,
//                                   shards.txt (content hash of the shards that it began with)
//   baselines/dense/  baselines/dense_large_batch/  baselines/random_shards/<e>/
//   baselines/tfidf_kmeans/<e>/     the same files
//   evaluation/<split>/*.h5         log-likelihoods per token of each model, routers' scores, and
//   how
//                                   a Lory model weighs its experts
//   tasks/<task>-<hash>/*.json      log-likelihoods of a task's items under each model
//   scoring/                        scores of work that was stopped in the middle
//   ledger/<start>-rank-<r>.json    what each rank of each start sent, see comm/ledger.hpp
//   queue/<start>/                  claims of work after the shards, one folder per start of a
//                                   job; a file stop that tells its ranks to stop
//   locks/                          who writes what at the moment (see WriteLock)
//   slurm/                          what slurm/submit and its stages note, see slurm/README.md
//   stop                            made by a person: every job on this run saves and ends
//   seconds.json                    wall time of the stages, all starts together
//   results.json  report.html  comparison-<split>.json  tasks.json
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <string>

namespace smalltalk {

// The texts of an experiment.
inline constexpr std::array<const char*, 3> kSplits = {"train", "validation", "test"};

// Models by name, which is their folder below the run.
std::string router_name(int64_t e);
std::string expert_name(int64_t e);

struct RunLayout {
  std::filesystem::path root;

  std::filesystem::path experiment() const { return root / "experiment.toml"; }
  std::filesystem::path tokens_folder() const { return root / "tokens"; }
  std::filesystem::path tokenizer() const { return tokens_folder() / "tokenizer.model"; }
  std::filesystem::path tokens(const std::string& split) const {
    return tokens_folder() / (split + ".h5");
  }
  std::filesystem::path order() const { return root / "order.h5"; }
  std::filesystem::path rounds_folder() const { return root / "rounds"; }
  std::filesystem::path round(int64_t round) const;
  std::filesystem::path round_record(int64_t round) const;
  std::filesystem::path routing_log() const { return root / "routing.jsonl"; }
  std::filesystem::path routers_folder() const { return root / "routers"; }
  std::filesystem::path router(int64_t e) const { return model(router_name(e)); }
  std::filesystem::path scores() const { return root / "scores"; }
  std::filesystem::path shards_folder() const { return root / "shards"; }
  std::filesystem::path shard_file(const std::string& name) const {
    return shards_folder() / (name + ".h5");
  }
  std::filesystem::path shards() const { return root / "shards.h5"; }  // a link to the current one
  std::filesystem::path random_shards() const { return root / "random_shards.h5"; }
  std::filesystem::path tfidf_shards() const { return root / "tfidf_shards.h5"; }
  std::filesystem::path tfidf_folder() const { return root / "tfidf"; }
  std::filesystem::path tfidf_clusters(const std::string& name) const {
    return tfidf_folder() / (name + ".safetensors");
  }
  std::filesystem::path sharding_report() const { return root / "sharding.json"; }
  std::filesystem::path model(const std::string& unit) const { return root / unit; }
  std::filesystem::path metrics(const std::string& unit) const;
  // Written last: says that the model is trained to its end.
  std::filesystem::path trained_mark(const std::string& unit) const {
    return model(unit) / "training.json";
  }
  std::filesystem::path shards_record(const std::string& unit) const {
    return model(unit) / "shards.txt";
  }
  std::filesystem::path evaluation_folder() const { return root / "evaluation"; }
  std::filesystem::path evaluation(const std::string& split, const std::string& cell) const;
  std::filesystem::path task_scores(const std::string& task, const std::string& model) const;
  std::filesystem::path scoring_folder() const { return root / "scoring"; }
  std::filesystem::path scoring_notes(const std::string& work) const;
  std::filesystem::path lock(const std::string& what) const;
  std::filesystem::path stop_file() const { return root / "stop"; }
  std::filesystem::path ledger_folder() const { return root / "ledger"; }
  std::filesystem::path queue(const std::string& start, const std::string& work) const;
  std::filesystem::path slurm_id() const { return root / "slurm" / "id"; }
  std::filesystem::path slurm_record(const std::string& stage, int64_t index) const;
  std::filesystem::path seconds() const { return root / "seconds.json"; }
  std::filesystem::path results() const { return root / "results.json"; }
  std::filesystem::path comparison(const std::string& split) const {
    return root / ("comparison-" + split + ".json");
  }
  std::filesystem::path task_results() const { return root / "tasks.json"; }
  std::filesystem::path report() const { return root / "report.html"; }
};

// The same of a sweep's folder: its runs are run folders.
struct SweepLayout {
  std::filesystem::path root;

  static std::string run_name(const std::string& run, uint64_t seed) {
    return run + "-seed-" + std::to_string(seed);
  }
  std::filesystem::path run(const std::string& run, uint64_t seed) const {
    return root / "runs" / run_name(run, seed);
  }
  // A run folder of which only the tokens are there, for all runs on the same text.
  std::filesystem::path tokens_of(const std::string& key) const { return root / "tokens" / key; }
  std::filesystem::path tables() const { return root / "sweep.json"; }
  std::filesystem::path markdown() const { return root / "sweep.md"; }
  std::filesystem::path seconds() const { return root / "seconds.json"; }
};

}  // namespace smalltalk
