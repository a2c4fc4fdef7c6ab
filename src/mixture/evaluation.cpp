#include "smalltalk/mixture/evaluation.hpp"

#include <fmt/format.h>

#include <memory>
#include <numeric>

#include "smalltalk/core/log.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/lm/transformer.hpp"
#include "smalltalk/mixture/router_em.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

ScoreMatrix score_by_routers(const Experiment& experiment, const RunLayout& layout,
                             const std::shared_ptr<const TokenFile>& tokens) {
  const int64_t n = tokens->num_sequences(experiment.data.seq_length);
  std::vector<uint64_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), uint64_t{0});
  ScoreMatrix scores(n, experiment.mixture.experts);
  for (int64_t e = 0; e < experiment.mixture.experts; ++e) {
    const Transformer router = Transformer::load(layout.router(e), experiment.device);
    const std::vector<float> column = score_prefixes(
        router, tokens, ids, experiment.data.seq_length, {&experiment.mixture.prefix_tokens, 1});
    for (int64_t i = 0; i < n; ++i) {
      scores.row(i)[static_cast<size_t>(e)] = column[static_cast<size_t>(i)];
    }
  }
  return scores;
}

ScoreMatrix score_by_model(const Experiment& experiment, const fs::path& folder,
                           const std::shared_ptr<const TokenFile>& tokens) {
  const int64_t length = experiment.data.seq_length;
  const int64_t n = tokens->num_sequences(length);
  const std::vector<int64_t> prefixes = {experiment.mixture.prefix_tokens, length + 1};
  const std::vector<double> sums =
      score_rows(Transformer::load(folder, experiment.device),
                 ordered_rows(tokens, {}, length, length + 1), n, prefixes);
  ScoreMatrix scores(n, 2);
  for (int64_t i = 0; i < n; ++i) {
    const double* sum = &sums[static_cast<size_t>(2 * i)];
    scores.row(i)[0] = static_cast<float>(sum[0]);
    scores.row(i)[1] = static_cast<float>(sum[1] - sum[0]);
  }
  return scores;
}

}  // namespace

std::vector<EvalCell> eval_cells(const std::vector<TrainUnit>& units) {
  std::vector<EvalCell> cells;
  for (const std::string split : {"validation", "test"}) {
    cells.push_back({split, "routers"});
    for (const TrainUnit& unit : units) cells.push_back({split, unit.name});
  }
  return cells;
}

bool cell_complete(const RunLayout& layout, const EvalCell& cell) {
  return fs::exists(layout.evaluation(cell.split, cell.unit));
}

void evaluate_cell(const Experiment& experiment, const RunLayout& layout, const EvalCell& cell) {
  if (cell_complete(layout, cell)) return;
  const auto tokens = std::make_shared<const TokenFile>(layout.tokens(cell.split));
  const ScoreMatrix scores = cell.unit == "routers"
                                 ? score_by_routers(experiment, layout, tokens)
                                 : score_by_model(experiment, layout.model(cell.unit), tokens);
  write_scores(layout.evaluation(cell.split, cell.unit), scores,
               {{"tokens", tokens->info().content_hash},
                {"experiment", experiment_hash(experiment)},
                {"unit", cell.unit}});
  log_info(fmt::format("evaluated {} on {}", cell.unit, cell.split));
}

}  // namespace smalltalk
