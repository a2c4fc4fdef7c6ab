#include "smalltalk/mixture/evaluation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "smalltalk/core/log.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/lm/transformer.hpp"
#include "smalltalk/mixture/router_em.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kBlockRows = 32;

ScoreMatrix score_by_routers(const Experiment& experiment, const RunLayout& layout,
                             const TokenFile& tokens) {
  const int64_t n = tokens.num_sequences(experiment.data.seq_length);
  std::vector<uint64_t> ids(static_cast<size_t>(n));
  std::iota(ids.begin(), ids.end(), uint64_t{0});
  ScoreMatrix scores(n, experiment.mixture.experts);
  for (int64_t e = 0; e < experiment.mixture.experts; ++e) {
    const Transformer router = Transformer::load(layout.router(e), experiment.device);
    const std::vector<float> column = score_prefixes(
        router, tokens, ids, experiment.data.seq_length, experiment.mixture.prefix_tokens);
    for (int64_t i = 0; i < n; ++i) {
      scores.row(i)[static_cast<size_t>(e)] = column[static_cast<size_t>(i)];
    }
  }
  return scores;
}

ScoreMatrix score_by_model(const Experiment& experiment, const fs::path& folder,
                           const TokenFile& tokens) {
  const Transformer model = Transformer::load(folder, experiment.device);
  const int64_t length = experiment.data.seq_length;
  const int64_t row_tokens = length + 1;
  const int64_t n = tokens.num_sequences(length);
  ScoreMatrix scores(n, 2);
  std::vector<int64_t> rows(static_cast<size_t>(kBlockRows * row_tokens));  // [block, S + 1]
  std::vector<double> head(kBlockRows);
  std::vector<double> tail(kBlockRows);
  for (int64_t first = 0; first < n; first += kBlockRows) {
    const int64_t count = std::min(kBlockRows, n - first);
    for (int64_t i = 0; i < count; ++i) {
      tokens.read((first + i) * length, std::span(rows).subspan(static_cast<size_t>(i * row_tokens),
                                                                static_cast<size_t>(row_tokens)));
    }
    model.log_likelihoods(std::span(rows).first(static_cast<size_t>(count * row_tokens)), count,
                          row_tokens, experiment.mixture.prefix_tokens, kBlockRows,
                          std::span(head).first(static_cast<size_t>(count)),
                          std::span(tail).first(static_cast<size_t>(count)));
    for (int64_t i = 0; i < count; ++i) {
      scores.row(first + i)[0] = static_cast<float>(head[static_cast<size_t>(i)]);
      scores.row(first + i)[1] = static_cast<float>(tail[static_cast<size_t>(i)]);
    }
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
  const TokenFile tokens(layout.tokens(cell.split));
  const ScoreMatrix scores = cell.unit == "routers"
                                 ? score_by_routers(experiment, layout, tokens)
                                 : score_by_model(experiment, layout.model(cell.unit), tokens);
  write_scores(layout.evaluation(cell.split, cell.unit), scores,
               {{"tokens", tokens.info().content_hash},
                {"experiment", experiment_hash(experiment)},
                {"unit", cell.unit}});
  log_info(fmt::format("evaluated {} on {}", cell.unit, cell.split));
}

}  // namespace smalltalk
