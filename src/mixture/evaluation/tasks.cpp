#include "smalltalk/mixture/evaluation/tasks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "mixture/routing/scoring_notes.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/mixture/routing/scoring.hpp"
#include "smalltalk/mixture/run/provenance.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int64_t kLengthStep = 32;  // of rows that are scored together; fixed, so that results are
constexpr const char* kByPrompt = "-by-prompt";  // in names of what is merged so
constexpr int64_t kPaddingToken = 0;             // behind a row, where no token of it looks

std::string hash_of(const std::vector<ChoiceRow>& rows) {
  Hasher hasher;
  for (const ChoiceRow& row : rows) {
    const std::array<int64_t, 2> sizes = {std::ssize(row.tokens), row.given};
    hasher.update(std::as_bytes(std::span(sizes)));
    hasher.update(std::as_bytes(std::span(row.tokens)));
  }
  return hasher.digest();
}

int64_t padded_size(const ChoiceRow& row) {
  const int64_t inputs = std::max<int64_t>(1, std::ssize(row.tokens) - 1);
  return (inputs + kLengthStep - 1) / kLengthStep * kLengthStep + 1;
}

// Rows of the same padded size.
RowSource padded_rows(std::span<const ChoiceRow* const> rows, int64_t size) {
  return {size, [=](int64_t first, int64_t count, std::span<int64_t> tokens) {
            std::ranges::fill(tokens, kPaddingToken);
            for (int64_t i = 0; i < count; ++i) {
              std::ranges::copy(rows[static_cast<size_t>(first + i)]->tokens,
                                tokens.begin() + i * size);
            }
          }};
}

double score_choice(const ChoiceRow& row, std::span<const float> log_probs) {
  std::array<double, 2> sums{};
  sum_prefixes(log_probs, std::array{row.given, std::ssize(row.tokens)}, sums);
  return sums[1] - sums[0];
}

bool is_greedy(const ChoiceRow& row, std::span<const uint8_t> greedy) {
  const auto first = static_cast<size_t>(row.given - 1);
  return std::ranges::all_of(greedy.subspan(first, row.tokens.size() - 1 - first), std::identity());
}

}  // namespace

ChoiceScores score_choices(const Transformer& model, const std::vector<ChoiceRow>& rows,
                           ScoringNotes* notes, MergeBy merging) {
  // What rows have in common that are scored together.
  const auto shape = [&](const ChoiceRow* row) {
    return std::pair(padded_size(*row), merging == MergeBy::prompt ? row->given : 0);
  };
  std::vector<const ChoiceRow*> order;
  for (const ChoiceRow& row : rows) order.push_back(&row);
  std::ranges::stable_sort(order, {}, shape);
  RowScores ordered(1, std::ssize(rows), 2, notes);
  while (ordered.done() < std::ssize(rows)) {
    const auto left = std::span(order).subspan(static_cast<size_t>(ordered.done()));
    const auto [size, prompt_tokens] = shape(left[0]);
    const auto other = std::ranges::find_if(
        left, [&](const ChoiceRow* row) { return shape(row) != shape(left[0]); });
    ordered.fill(model, padded_rows(order, size), ordered.done() + (other - left.begin()),
                 [&](int64_t place, auto log_probs, auto greedy, std::span<double> score) {
                   const ChoiceRow& row = *order[static_cast<size_t>(place)];
                   score[0] = score_choice(row, log_probs);
                   score[1] = is_greedy(row, greedy) ? 1 : 0;
                 },
                 {.prompt_tokens = prompt_tokens});
  }
  ChoiceScores scores{std::vector<double>(rows.size()), std::vector<uint8_t>(rows.size())};
  for (size_t i = 0; i < order.size(); ++i) {
    const auto row = static_cast<size_t>(order[i] - rows.data());
    scores.log_likelihoods[row] = ordered.values()[2 * i];
    scores.greedy[row] = static_cast<uint8_t>(ordered.values()[2 * i + 1]);
  }
  return scores;
}

TaskEvaluation::TaskEvaluation(const Run& run, std::vector<TrainUnit> units,
                               std::vector<Task> tasks)
    : experiment_(run.experiment),
      layout_(run.layout),
      units_(std::move(units)),
      tasks_(std::move(tasks)) {
  const int64_t experts = experiment_.mixture.experts;
  MixtureParts parts = require_one_mixture(run, units_);
  for (int64_t e = 0; e < experts; ++e) {
    parts.models[router_name(e)] = weights_hash(layout_.router(e));
  }
  const Tokenizer tokenizer(layout_.tokenizer());
  std::set<std::string> names;
  for (const Task& task : tasks_) {
    std::set<std::string> its = {task.name};
    for (const TaskItem& item : task.items) {
      if (!item.phenomenon.empty()) its.insert(task.name + "_" + item.phenomenon);
    }
    for (const std::string& name : its) {
      if (!names.insert(name).second) {
        throw Error(fmt::format("two tasks, or a task and a phenomenon, are called {}", name));
      }
    }
    asked_.push_back(ask(task, tokenizer, parts.prefix_tokens));
  }
  for (size_t t = 0; t < tasks_.size(); ++t) {
    const Asked& asked = asked_[t];
    const auto add = [&](const std::string& model, const Asked::Rows& rows,
                         MergeBy merging = MergeBy::segments) {
      const std::string task =
          tasks_[t].name + "-" + rows.hash + (merging == MergeBy::prompt ? kByPrompt : "");
      cells_.push_back(
          {t, model, parts.models.at(model), &rows, layout_.task_scores(task, model), merging});
    };
    for (const TrainUnit& unit : units_) add(unit.name, asked.of_models);
    for (int64_t e = 0; e < experts; ++e) add(router_name(e), asked.of_routers);
    for (const TrainUnit& unit : units_) {  // what such a model answers depends on the merging
      if (unit.kind->merges_experts()) add(unit.name, asked.of_models, MergeBy::prompt);
    }
  }
}

TaskEvaluation::Asked TaskEvaluation::ask(const Task& task, const Tokenizer& tokenizer,
                                          int64_t prefix_tokens) const {
  const int64_t length = experiment_.data.seq_length;
  std::vector<ChoiceRow> rows = encode_task(task, tokenizer);
  Asked asked;
  for (const ChoiceRow& row : rows) {
    const int64_t size = std::ssize(row.tokens);
    asked.requests_cut += size > length + 1 ? 1 : 0;
    asked.choices_cut += size - row.given > length ? 1 : 0;
  }
  if (asked.requests_cut > 0) {
    log_info(
        fmt::format("{}: {} of {} requests are longer than the models' {} tokens; of those, "
                    "the beginning{} is left out",
                    task.name, asked.requests_cut, rows.size(), length,
                    task.num_fewshot > 0 ? ", where the examples are," : ""));
  }
  if (asked.choices_cut > 0) {
    log_warning(
        fmt::format("{}: {} choices are longer than the models' {} tokens; only the last of "
                    "theirs are scored, where lm_eval would end",
                    task.name, asked.choices_cut, length));
  }
  if (experiment_.has_mixture()) asked.of_routers.rows = rows_for_router(rows, prefix_tokens);
  asked.of_models.rows = rows_for_model(std::move(rows), length);
  for (Asked::Rows* of : {&asked.of_routers, &asked.of_models}) of->hash = hash_of(of->rows);
  return asked;
}

std::string TaskEvaluation::name(size_t cell) const {
  return tasks_[cells_[cell].task].name + "-" + cells_[cell].model +
         (cells_[cell].merging == MergeBy::prompt ? kByPrompt : "");
}

ChoiceScores TaskEvaluation::read(size_t index) const {
  const Cell& cell = cells_[index];
  if (!fs::exists(cell.file)) return {};
  const auto found = parse_json_row(read_text(cell.file));
  try {
    if (!found || found->at("weights") != cell.weights) return {};
    ChoiceScores scores;
    found->at("loglikelihoods").get_to(scores.log_likelihoods);
    const size_t size = cell.rows->rows.size();
    if (scores.log_likelihoods.size() != size) return {};
    if (tasks_[cell.task].kind == TaskKind::target) {
      found->at("greedy").get_to(scores.greedy);
      if (scores.greedy.size() != size) return {};
    }
    return scores;
  } catch (const json::exception&) {
    return {};
  }
}

void TaskEvaluation::compute(size_t index) const {
  if (complete(index)) return;
  const Cell& cell = cells_[index];
  const double start = now_seconds();
  ScoringNotes notes(layout_.scoring_notes("tasks-" + name(index)),
                     cell.weights + " " + cell.rows->hash + " with greedy");
  const Transformer model = Transformer::load(layout_.model(cell.model), experiment_.device);
  const ChoiceScores scores = score_choices(model, cell.rows->rows, &notes, cell.merging);
  if (!std::ranges::all_of(scores.log_likelihoods,
                           [](double score) { return std::isfinite(score); })) {
    throw Error(fmt::format("{} gives a choice of {} a log-likelihood that is not finite",
                            layout_.model(cell.model).string(), tasks_[cell.task].name));
  }
  json kept = {{"task", tasks_[cell.task].name},
               {"model", cell.model},
               {"weights", cell.weights},
               {"loglikelihoods", scores.log_likelihoods}};
  if (tasks_[cell.task].kind == TaskKind::target) kept["greedy"] = scores.greedy;
  write_text_atomically(cell.file, kept.dump() + "\n");
  notes.remove();
  log_info(fmt::format("{} on {}: {} choices, {}", cell.model, tasks_[cell.task].name,
                       scores.greedy.size(), human_duration(now_seconds() - start)));
}

ChoiceScores TaskEvaluation::scores_of(size_t task, size_t model) const {
  const size_t cell = task * (cells_.size() / tasks_.size()) + model;
  ChoiceScores scores = read(cell);
  if (scores.log_likelihoods.empty())
    throw Error(cells_[cell].file.string() + " is missing or damaged");
  return scores;
}

std::vector<size_t> TaskEvaluation::route(size_t task) const {
  const std::vector<TaskItem>& items = tasks_[task].items;
  std::vector<size_t> experts(items.size(), 0);
  std::vector<double> best(items.size(), -INFINITY);
  for (size_t e = 0; e < static_cast<size_t>(experiment_.mixture.experts); ++e) {
    const std::vector<double> scores = scores_of(task, units_.size() + e).log_likelihoods;
    auto score = scores.begin();
    for (size_t i = 0; i < items.size(); ++i) {
      const auto next = score + static_cast<int64_t>(items[i].num_requests());
      const double sum = std::accumulate(score, next, 0.0);
      score = next;
      if (sum <= best[i]) continue;
      best[i] = sum;
      experts[i] = e;
    }
  }
  return experts;
}

TaskEvaluation::Answers TaskEvaluation::answers_of(size_t task, const TrainedModel& model,
                                                   MergeBy merging) const {
  std::vector<ChoiceScores> scores;  // of each of the model's units
  for (const TrainUnit* unit : model.units) {
    const auto cell = std::ranges::find_if(cells_, [&](const Cell& each) {
      return each.model == unit->name && each.merging == merging;
    });
    scores.push_back(scores_of(task, static_cast<size_t>(cell - cells_.begin())));
  }
  const std::vector<TaskItem>& items = tasks_[task].items;
  const std::vector<size_t> units = model.kind->chosen_by == ChosenBy::routers
                                        ? route(task)
                                        : std::vector<size_t>(items.size(), 0);
  Answers answers;
  answers.shares.resize(scores.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const auto first = std::ssize(answers.scores.log_likelihoods);
    const auto take = [&](const auto& from, auto& to) {
      if (from.empty()) return;  // only targets have kept what is greedy
      to.insert(to.end(), from.begin() + first,
                from.begin() + first + static_cast<int64_t>(items[i].num_requests()));
    };
    take(scores[units[i]].log_likelihoods, answers.scores.log_likelihoods);
    take(scores[units[i]].greedy, answers.scores.greedy);
    ++answers.shares[units[i]];
  }
  for (double& share : answers.shares) share /= static_cast<double>(items.size());
  return answers;
}

}  // namespace smalltalk
