// The kinds of models that a run holds, as one table: what a kind is called, what it trains on, how
// a sequence finds its model and how it looks in charts. Training units, evaluation, comparisons
// and the report read the table; none of them compares names.
//
// A new kind is one row in kinds.cpp, the key of the experiment that asks for it, and its own code
// where an enumerator is new:
//   Rows      what it trains on: current_shards() in units.cpp; who makes such shards, and when
//             they are complete: jobs/run_stages.cpp, shards_stage() in stages.cpp, RunLayout
//   Budget    how long it trains: train_config() in units.cpp
//   ChosenBy  how a sequence finds its model: unit_of_sequences() in results.cpp, RowFinder in
//             rows.cpp, costs_of() in figures.cpp, answers_of() in tasks.cpp, the seconds of
//             choosing in sweep_text.cpp; jobs/tasks.cpp leaves out those chosen in turn
// and, if its model is not a transformer like an expert, what train_unit() does for it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/experiment/flops.hpp"

namespace smalltalk {

enum class Rows {
  chunks,        // of the rounds of the EM
  shard,         // of the routers' shards
  random_shard,  // dealt at random
  tfidf_shard,   // of clusters by TF-IDF
  all,           // every sequence of the corpus
};

enum class Budget {
  rounds,               // an M-step a round
  expert,               // steps and batch that the experiment gives
  flops,                // an expert's batch, until the FLOPs are training_budget()
  flops_of_large_batch  // the same with a batch E times as large
};

enum class ChosenBy { nobody, routers, nearest_cluster, turn };

// How a kind counts when models are compared.
enum class Role {
  mixture,   // what a run is about; the reference where there is no baseline
  router,    // a part of the mixture
  baseline,  // a reference: the first that is there, unless somebody asks for another
  rival,     // another system; a reference only if asked for
  control    // shows what a part of the mixture is worth; a reference only if asked for
};

struct ModelKind {
  std::string_view name;    // in results.json, comparisons and sweeps
  std::string_view label;   // in charts and tables of the report
  std::string_view stage;   // its training, as `inspect` lists it
  std::string_view folder;  // below the run; of several models, 0, 1, 2, ... lie in it
  Role role = Role::control;
  Rows rows = Rows::all;
  Budget budget = Budget::expert;
  bool one_for_each_expert = false;  // else it is one model
  ChosenBy chosen_by = ChosenBy::nobody;
  // Of an experiment. Null: is there where there is a mixture.
  bool (*asked_for)(const Experiment&) = nullptr;
  double (*lr)(const Experiment&) = nullptr;             // null, or 0: an expert's
  int64_t (*steps)(const Experiment&) = nullptr;         // null, or 0: by the budget
  int64_t (*warmup_steps)(const Experiment&) = nullptr;  // null, or 0: an expert's share of steps
  // What is no expert from the first step to the last: what it is, in how many of its first steps
  // it is an expert still, and the FLOPs of all its steps. Null: an expert; none; an expert's.
  ModelConfig (*own_model)(const Experiment&) = nullptr;
  int64_t (*dense_steps)(const Experiment&, int64_t steps) = nullptr;
  double (*flops)(const Experiment&, int64_t batch, int64_t steps) = nullptr;
  std::optional<Part> own_keys = {};  // that decide it beside an expert's

  struct Colour {
    std::string_view name;         // of the variable in the style sheet; empty: not in charts
    std::string_view light, dark;  // on a page of either sort
  } colour = {};
  struct Dash {
    std::string_view line;  // stroke-dasharray; empty: solid
    std::string_view key;   // border-style in a legend
  } dash = {};

  // How many models it is; none if it is not asked for.
  int64_t count(const Experiment& experiment) const;
  ModelConfig model(const Experiment& experiment) const {
    return own_model == nullptr ? experiment.expert_model : own_model(experiment);
  }
  bool merges_experts() const { return own_keys == Part::lory; }
  // Of training one of its models.
  double train_flops(const Experiment& experiment, int64_t batch, int64_t steps) const {
    return (flops == nullptr ? dense_flops : flops)(experiment, batch, steps);
  }
  // The folder of one of its models.
  std::string unit(int64_t index) const;
};

// In the order in which models are trained and listed.
std::span<const ModelKind> model_kinds();
// Null: there is none of this name.
const ModelKind* find_kind(std::string_view name);
// That of a model by its folder below the run.
const ModelKind& kind_of_unit(std::string_view unit);
// Of several, that of the table's first row.
const ModelKind& first_kind(Role role);

}  // namespace smalltalk
