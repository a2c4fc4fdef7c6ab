#include "mixture/routing/hosted_routers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>

#include "smalltalk/core/system/random.hpp"

namespace smalltalk {

namespace {

// Shorter rounds are their own progress: one line a round, none a step.
constexpr int64_t kQuietSteps = 500;

}  // namespace

HostedRouters::HostedRouters(const Run& run, const RouterHosting& hosting, int64_t steps_per_round)
    : run_(run), hosting_(hosting), ids_(hosting.share().routers) {
  const Experiment& experiment = run.experiment;
  const std::vector<uint64_t> seeds(ids_.size(), derive_seed(experiment.seed, "router init"));
  stack_ = std::make_unique<TransformerStack>(experiment.router_model, experiment.device, seeds);
  TrainConfig config = experiment.router_train;
  config.steps = steps_per_round * experiment.mixture.rounds;
  for (size_t i = 0; i < ids_.size(); ++i) {
    std::unique_ptr<Trainer>& trainer = trainers_.emplace_back();
    if (std::ranges::find(hosting.trains, ids_[i]) == hosting.trains.end()) continue;
    TrainOptions options;
    options.name = fmt::format("router {}", ids_[i]);
    options.folder = run.layout.router(ids_[i]);
    options.provenance = run.provenance;
    options.show_progress = steps_per_round >= kQuietSteps;
    trainer = std::make_unique<Trainer>(model(i), config, options);
    trainer->resume();
  }
}

int64_t HostedRouters::steps(int64_t otherwise) const {
  int64_t least = otherwise;
  for (const auto& trainer : trainers_) {
    if (trainer) least = std::min(least, trainer->step());
  }
  return least;
}

void HostedRouters::train(std::span<const RowSource> rows, int64_t last_step) {
  const int64_t least = steps(last_step);
  std::vector<Trainer*> all;
  for (const auto& trainer : trainers_) {
    if (trainer && trainer->step() == least) all.push_back(trainer.get());
  }
  if (all.size() == trainers_.size()) {
    if (least < last_step) train_stack(*stack_, all, rows, last_step);
  } else {
    for (size_t i = 0; i < trainers_.size(); ++i) {
      if (trainers_[i] && trainers_[i]->step() < last_step) trainers_[i]->run(rows[i], last_step);
    }
  }
  for (const auto& trainer : trainers_) {
    if (trainer) trainer->checkpoint();
  }
}

void HostedRouters::share_weights() {
  if (hosting_.block.size == 1) return;
  for (size_t i = 0; i < ids_.size(); ++i) {
    std::vector<float> weights = model(i).weights();
    hosting_.block.broadcast(std::as_writable_bytes(std::span(weights)), 0);
    model(i).set_weights(weights);
  }
}

void HostedRouters::save() {
  for (size_t i = 0; i < ids_.size(); ++i) {
    if (!trainers_[i]) continue;
    std::map<std::string, std::string> metadata(run_.provenance.begin(), run_.provenance.end());
    metadata["router"] = std::to_string(ids_[i]);
    metadata["smalltalk.seq_length"] = std::to_string(run_.experiment.data.seq_length);
    model(i).save(run_.layout.router(ids_[i]), metadata);
  }
  hosting_.world.barrier();
  for (const auto& trainer : trainers_) {
    if (trainer) trainer->clear_checkpoints();
  }
}

}  // namespace smalltalk
