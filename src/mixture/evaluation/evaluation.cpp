#include "smalltalk/mixture/evaluation/evaluation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "mixture/evaluation/lory_routing.hpp"
#include "mixture/evaluation/measured_text.hpp"
#include "mixture/routing/scoring_notes.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"
#include "smalltalk/mixture/routing/scoring.hpp"
#include "smalltalk/mixture/run/provenance.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

std::vector<fs::path> models_of(const RunLayout& layout, const EvalCell& cell) {
  if (!cell.of_all_routers()) return {layout.model(cell.unit)};
  std::vector<fs::path> routers;
  for (int64_t e = 0; fs::exists(weights_file(layout.router(e))); ++e) {
    routers.push_back(layout.router(e));
  }
  return routers;
}

std::string cell_values(const EvalCell& cell) {
  if (cell.merging == kRouting) return "sums of routing";
  return cell.of_all_routers() ? "prefix log-likelihoods" : "target log-likelihoods";
}

// The weights that the scores of a cell follow from.
std::string weights_of(std::span<const fs::path> models, int64_t step) {
  std::string hashes;
  for (const fs::path& model : models) hashes.append(weights_hash(model, step)).append(" ");
  return hash_text(hashes);
}

ScoreMatrix score_by_routers(const Experiment& experiment, std::span<const fs::path> routers,
                             const std::shared_ptr<const TokenFile>& tokens, ScoringNotes& notes) {
  const int64_t n = tokens->num_sequences(experiment.data.seq_length);
  std::vector<uint64_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), uint64_t{0});
  const auto stack = TransformerStack::load(routers, experiment.device);
  const std::vector<float> columns =  // [E, n]
      score_sequences(*stack, tokens, ids, experiment.data.seq_length,
                      {&experiment.mixture.prefix_tokens, 1}, &notes);
  ScoreMatrix scores(n, std::ssize(routers));
  for (size_t e = 0; e < routers.size(); ++e) {
    for (int64_t i = 0; i < n; ++i) {
      scores.row(i)[e] = columns[e * static_cast<size_t>(n) + static_cast<size_t>(i)];
    }
  }
  return scores;
}

ScoreMatrix as_matrix(const RowScores& rows, int64_t n, int64_t width) {
  ScoreMatrix scores(n, width);
  std::ranges::transform(rows.values(), scores.values().begin(),
                         [](double value) { return static_cast<float>(value); });
  return scores;
}

// A cell's one model. Error: its config.json is not what the experiment asks for.
Transformer load_model(const Run& run, const fs::path& folder, const EvalCell& cell) {
  Transformer model = Transformer::load(folder, run.experiment.device, cell.step);
  const ModelConfig expected = kind_of_unit(cell.unit).model(run.experiment);
  if (!model.config().computes_like(expected.resolved())) {
    throw Error(fmt::format("{} is of another model than the experiment's: training writes it",
                            config_file(folder).string()));
  }
  return model;
}

ScoreMatrix sums_of_routing(const Run& run, const fs::path& folder, const EvalCell& cell,
                            const std::shared_ptr<const TokenFile>& tokens, ScoringNotes& notes) {
  const int64_t length = run.experiment.data.seq_length;
  const MeasuredText text = read_measured_text(run.layout, cell.split, length);
  const Transformer model = load_model(run, folder, cell);
  const int64_t experts = model.config().merged_experts;
  const int64_t width = routing_sums_width(model.config().num_merging_layers(), experts);
  RowScores sums(1, text.num_sequences, width, &notes);
  sums.fill(model, ordered_rows(tokens, {}, length, length + 1),
            [&](int64_t row, const RowRouting& routing, std::span<double> of_row) {
              sum_routing(routing, experts, text.targets[static_cast<size_t>(row)], of_row);
            });
  return as_matrix(sums, text.num_sequences, width);
}

TokenLikelihoods score_by_model(const Run& run, const fs::path& folder, const EvalCell& cell,
                                const std::shared_ptr<const TokenFile>& tokens,
                                ScoringNotes& notes) {
  const int64_t length = run.experiment.data.seq_length;
  const int64_t n = tokens->num_sequences(length);
  const Transformer model = load_model(run, folder, cell);
  Merging merging;
  merging.leaky = cell.merging == kLeaky;
  if (cell.merging == kByFirstSegment) merging.prompt_tokens = model.config().segment_tokens;
  RowScores by_token(1, n, length, &notes);
  by_token.fill(
      model, ordered_rows(tokens, {}, length, length + 1), n,
      [](int64_t, auto log_probs, auto, auto row) { std::ranges::copy(log_probs, row.begin()); },
      merging);
  return as_matrix(by_token, n, length);
}

}  // namespace

TokenLikelihoods read_cell(const RunLayout& layout, const EvalCell& cell) {
  return read_scores(cell.file(layout));
}

bool cell_complete(const RunLayout& layout, const EvalCell& cell) {
  const fs::path file = cell.file(layout);
  if (!fs::exists(file)) return false;
  const std::vector<fs::path> models = models_of(layout, cell);
  for (const fs::path& model : models) {  // one that was removed is trained anew
    if (!fs::exists(weights_file(model, cell.step))) return false;
  }
  std::error_code gone;
  const auto written = fs::last_write_time(file, gone);
  Provenance made_from;
  try {
    made_from = ScoreFile(file).provenance();
  } catch (const Error&) {
    if (!gone && fs::last_write_time(file, gone) == written) throw;
    return cell_complete(layout, cell);  // another rank has just made it anew
  }
  return made_from["values"] == cell_values(cell) &&
         made_from["tokens"] == TokenFile(layout.tokens(cell.split)).info().content_hash &&
         made_from["weights"] == weights_of(models, cell.step);
}

void evaluate_cell(const Run& run, const EvalCell& cell) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
  if (cell_complete(layout, cell)) return;
  const auto tokens = std::make_shared<const TokenFile>(layout.tokens(cell.split));
  const std::vector<fs::path> models = models_of(layout, cell);
  if (cell.step > 0) require_checkpoint(models[0], cell.step);
  const std::string weights = weights_of(models, cell.step);
  ScoringNotes notes(
      layout.scoring_notes(cell.name()),
      fmt::format("{} {} {} {} {} {}", cell_values(cell), cell.model(), tokens->info().content_hash,
                  experiment.data.seq_length, experiment.mixture.prefix_tokens, weights));
  const ScoreMatrix scores =
      cell.merging == kRouting ? sums_of_routing(run, models[0], cell, tokens, notes)
      : cell.of_all_routers()  ? score_by_routers(experiment, models, tokens, notes)
                               : score_by_model(run, models[0], cell, tokens, notes);
  write_scores(cell.file(layout), scores,
               {{"tokens", tokens->info().content_hash},
                {"experiment", experiment_hash(experiment)},
                {"unit", cell.unit},
                {"values", cell_values(cell)},
                {"weights", weights}});
  notes.remove();
  log_info(fmt::format("evaluated {} on {}", cell.model(), cell.split));
}

bool compute_cells(const Run& run, const std::string& start, const std::vector<EvalCell>& cells,
                   WorkPart part) {
  const std::vector<TrainUnit> units = units_of(run);
  std::vector<Work> pieces;
  for (const EvalCell& cell : cells) {
    // A model that is still in training, or to be trained on, is left to the group that trains it,
    // which comes here next: nobody waits for anybody.
    const auto trained = [&] {
      return cell.of_routers() || unit_stage(run.layout, find_unit(units, cell.unit)).complete();
    };
    pieces.push_back({cell.name(),
                      [&, trained] { return trained() && cell_complete(run.layout, cell); },
                      [&] { evaluate_cell(run, cell); }, trained});
  }
  return work_off(run.layout, start, pieces, part);
}

double bits_per_byte(double nats, int64_t num_targets, const TokenFileInfo& info) {
  const double share =
      static_cast<double>(num_targets) / static_cast<double>(info.num_tokens - info.padding);
  return nats / std::log(2.0) / (static_cast<double>(info.text_bytes) * share);
}

}  // namespace smalltalk
