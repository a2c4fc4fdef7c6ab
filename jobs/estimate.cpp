#include "estimate.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/data/documents.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/mixture/routing/corpus_scores.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

// Before the corpus is tokenised: bytes of text per token, a little under what is usual, so that
// the estimate errs on the large side.
constexpr double kBytesPerToken = 2.0;

// Of a CPU's core, where device.flops_per_second = 0 leaves it to be measured.
constexpr double kAssumedFlopsPerSecond = 5e10;

// Nothing if the text is not there.
std::optional<int64_t> guess_tokens(const std::vector<std::string>& inputs) {
  try {
    const auto bytes = static_cast<double>(unpacked_bytes(expand_inputs(inputs).files));
    return static_cast<int64_t>(bytes / kBytesPerToken);
  } catch (const Error&) {  // which require_text() tells
    return std::nullopt;
  }
}

// Of a held-out split that is there or, by its text, guessed.
double tokens_of(const Run& run, const std::string& split, const std::vector<std::string>& text) {
  const fs::path file = run.layout.tokens(split);
  if (fs::exists(file)) return static_cast<double>(TokenFile(file).info().num_tokens);
  return static_cast<double>(guess_tokens(text).value_or(0));
}

// Of the tokenizer that is there or named; else of the one to be trained.
int64_t vocab_size_of(const Run& run) {
  for (const fs::path& file : {run.layout.tokenizer(), fs::path(run.experiment.data.tokenizer)}) {
    try {
      if (fs::exists(file)) return Tokenizer(file).vocab_size();
    } catch (const Error&) {  // which require_text() tells
    }
  }
  return run.experiment.data.vocab_size;
}

// Of the rank that has most to do: only a part of them trains routers, and the groups take experts
// in turn.
double busiest_flops(const Estimate& estimate, const RankPlan& plan) {
  double trained = 0, scored = 0;  // routers
  for (const RankRole& rank : plan.ranks) {
    trained = std::max(trained, static_cast<double>(rank.trains_routers.size()));
    scored = std::max(scored, static_cast<double>(rank.scores_routers.size()) / rank.score_parts);
  }
  const double baselines = estimate.baseline_flops / plan.num_groups / plan.group_size;
  if (plan.num_experts == 0) return baselines;
  const double experts = plan.num_experts;
  const int experts_of_group = (plan.num_experts + plan.num_groups - 1) / plan.num_groups;
  const MixtureFlops& flops = estimate.flops;
  return (flops.router_train_upper * trained + flops.router_scoring * scored) / experts +
         flops.sharding / static_cast<double>(plan.ranks.size()) +
         flops.expert_train * experts_of_group / experts / plan.group_size + baselines;
}

// Log-likelihoods of the tokens of both held-out splits under each model, and routers' scores; and
// these splits' tokens.
double evaluation_bytes(const Run& run, size_t units) {
  const Experiment& e = run.experiment;
  const double tokens =
      tokens_of(run, "validation", e.data.validation) + tokens_of(run, "test", e.data.test);
  const double scores = static_cast<double>(units) + static_cast<double>(e.mixture.experts) /
                                                         static_cast<double>(e.data.seq_length);
  return tokens * (4 * scores + 2);
}

// The nearest folder that exists: the run folder itself may not yet.
fs::path existing_parent(fs::path path) {
  path = fs::absolute(path);
  while (!fs::exists(path) && path.has_parent_path()) path = path.parent_path();
  return path;
}

// Of a checkpoint, in sizes of the model: weights and two moments.
constexpr double kCheckpointSize = 3;

// What one of a kind's models takes on each device of its group.
ModelEstimate estimate_model(const Experiment& experiment, const TrainUnit& unit,
                             const RankPlan& plan) {
  const ModelConfig model = unit.kind->model(experiment);
  const int64_t length = experiment.data.seq_length;
  const int group = std::max(plan.group_size, 1);
  ModelEstimate result;
  result.name = unit.kind->role == Role::mixture ? "an expert" : std::string(unit.kind->label);
  result.parameters = parameter_count(model);
  TrainConfig planned = unit.train;
  try {
    constexpr double kAssumedGpuBytes = 80e9;
    planned = fitted_to_device(model, planned, experiment.device, length, group, kAssumedGpuBytes);
  } catch (const Error& error) {
    log_warning(error.what());
    if (planned.micro_batch_size == 0) planned.micro_batch_size = 1;
    if (planned.recompute == Recompute::automatic) planned.recompute = Recompute::full;
  }
  result.micro_batch = planned.micro_batch_size;
  result.recompute = planned.recompute;
  result.memory = predicted_memory(model, planned, experiment.device, length, group);
  if (experiment.device.device != "cuda") return result;
  for (const Accelerator& each : accelerators()) {
    result.steps.emplace_back(each.name, predicted_step(model, planned, length, group, each));
  }
  return result;
}

}  // namespace

Estimate estimate(const Run& run, const RankPlan& plan) {
  Experiment experiment = run.experiment;
  Estimate result;
  const MixtureConfig& mixture = experiment.mixture;
  const TrainConfig& train = experiment.expert_train;
  int64_t tokens = 0;
  if (fs::exists(run.layout.tokens("train"))) {
    tokens = TokenFile(run.layout.tokens("train")).info().num_tokens;
  } else if (const auto guess = guess_tokens(experiment.data.train)) {
    tokens = *guess;
    result.corpus = CorpusSize::guessed;
  } else {
    const int64_t models = std::max<int64_t>(mixture.experts, 1);
    tokens = experiment.data.seq_length *
                 std::max(models * train.steps * train.batch_size, mixture.sequences_per_round) +
             1;
    result.corpus = CorpusSize::assumed;
  }
  experiment.data.vocab_size = vocab_size_of(run);
  experiment.adopt_tokens(experiment.data.vocab_size, kEndToken);
  result.orders_documents = experiment.data.order == TextOrder::similar;
  result.num_sequences = std::max<int64_t>(1, (tokens - 1) / experiment.data.seq_length);
  result.flops = mixture_flops(experiment, result.num_sequences);
  const std::vector<TrainUnit> units = train_units(experiment, result.num_sequences);
  for (const TrainUnit& unit : units) {
    if (unit.kind->role != Role::mixture) result.baseline_flops += unit_flops(experiment, unit);
  }

  double all_parameters = 0, largest = 0;
  for (const TrainUnit& unit : units) {
    const int64_t own = parameter_count(unit.kind->model(experiment));
    all_parameters += static_cast<double>(own);
    largest = std::max(largest, static_cast<double>(own));
    if (std::ranges::find(result.models, own, &ModelEstimate::parameters) == result.models.end()) {
      result.models.push_back(estimate_model(experiment, unit, plan));
    }
  }

  const auto rounds = static_cast<double>(mixture.rounds);
  const auto n = static_cast<double>(mixture.sequences_per_round);
  const auto experts = static_cast<double>(mixture.experts);
  const auto corpus = static_cast<double>(result.num_sequences);
  const auto ranks = static_cast<double>(plan.ranks.size());
  result.score_bytes = 2 * experts * n * (rounds - 1) / ranks;
  const auto router = static_cast<double>(parameter_count(experiment.router_model));
  const int64_t of_stable_phase = train.schedule().end_of_stable_phase() > 0 ? 1 : 0;
  const auto kept_for_ever = static_cast<double>(
      of_stable_phase + (train.keep_every > 0 ? train.steps / train.keep_every : 0));
  result.disk_bytes =
      static_cast<double>(tokens) * 2 * 1.1 +
      all_parameters * 4 * (1 + kCheckpointSize * kept_for_ever) +
      static_cast<double>(plan.num_groups) * largest * 4 * kCheckpointSize *
          static_cast<double>(train.keep_last + 1) +  // and the one that is being written
      experts * router * 4 *
          (1 + kCheckpointSize * static_cast<double>(experiment.router_train.keep_last + 1)) +
      corpus * 10 * 2 + rounds * n * 18 +  // shard files
      corpus * experts * 4 *               // the score store
          static_cast<double>(kept_prefixes(mixture.prefix_tokens).size()) +
      evaluation_bytes(run, units.size());
  const double given = experiment.device.flops_per_second;
  result.flops_per_second = given > 0 ? given : kAssumedFlopsPerSecond;
  const auto& steps = result.models[0].steps;
  for (size_t i = 0; i < steps.size(); ++i) {
    const auto& [name, step] = steps[i];
    if (given == 0 && name == "H100") {
      result.flops_per_second = step.mfu * accelerators()[i].peak_flops;
    }
  }
  result.seconds = busiest_flops(result, plan) / result.flops_per_second;
  return result;
}

std::string describe(const Estimate& e) {
  std::string text;
  const auto line = [&](const std::string& what, const std::string& value) {
    text += fmt::format("  {:<34} {}\n", what, value);
  };
  text += "estimate\n";
  const char* origin = "";
  if (e.corpus == CorpusSize::guessed) origin = " (guessed from the text's size)";
  if (e.corpus == CorpusSize::assumed)
    origin = " (assumed: each trained on once; no text is there)";
  line("training sequences", fmt::format("{}{}", e.num_sequences, origin));
  if (e.orders_documents) line("documents", "in an order by likeness, made first");
  line("FLOPs, routers (training)", human_count(e.flops.router_train_upper));
  line("FLOPs, routers (scoring)", human_count(e.flops.router_scoring));
  line("FLOPs, sharding", human_count(e.flops.sharding));
  line("FLOPs, experts", human_count(e.flops.expert_train));
  line("FLOPs, all other models", human_count(e.baseline_flops));
  for (const ModelEstimate& model : e.models) {
    const MemoryEstimate& memory = model.memory;
    line(fmt::format("memory per device, {}", model.name), human_bytes(memory.total()));
    line("  weights", human_bytes(memory.weights));
    line("  gradients", human_bytes(memory.gradients));
    line("  optimiser", human_bytes(memory.optimizer));
    line("  communication", human_bytes(memory.communication));
    line("  checkpoint", human_bytes(memory.checkpoint));
    line("  activations", human_bytes(memory.activations));
    line("  loss", human_bytes(memory.loss));
    if (model.micro_batch > 0) line("  micro batch", std::to_string(model.micro_batch));
    if (model.recompute != Recompute::none) line("  recompute", to_string(model.recompute));
  }
  line("disk", human_bytes(e.disk_bytes));
  line("scores sent by each rank", human_bytes(e.score_bytes));
  line("bytes between groups after shards", "0");
  line("time", fmt::format("{} at {}FLOP/s per device", human_duration(e.seconds),
                           human_count(e.flops_per_second)));
  for (const ModelEstimate& model : e.models) {
    for (const auto& [name, step] : model.steps) {
      line(fmt::format("  a step of {}, {}", model.name, name),
           fmt::format("{:.3g} s, {:.0f} % MFU (predicted)", step.total(), 100 * step.mfu));
    }
  }
  return text;
}

void require_disk_space(const Run& run, const Estimate& estimate) {
  const double needed = estimate.disk_bytes;
  const fs::path where = existing_parent(run.layout.root);
  const auto free = static_cast<double>(fs::space(where).available);
  if (free < needed) {
    throw Error(
        fmt::format("{} has {} of free space and the run needs about {}: choose another "
                    "--out",
                    where.string(), human_bytes(free), human_bytes(needed)));
  }
}

}  // namespace smalltalk
