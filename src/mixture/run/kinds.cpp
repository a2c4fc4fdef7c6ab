#include "smalltalk/mixture/run/kinds.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr ModelKind kKinds[] = {
    {.name = "mixture",
     .label = "Mixture",
     .stage = "experts",
     .folder = "experts",
     .role = Role::mixture,
     .rows = Rows::shard,
     .budget = Budget::expert,
     .one_for_each_expert = true,
     .chosen_by = ChosenBy::routers,
     .colour = {"mixture", "#0060a8", "#62b6f5"}},
    {.name = "routers",
     .label = "Routers",
     .stage = "routers",
     .folder = "routers",
     .role = Role::router,
     .rows = Rows::chunks,
     .budget = Budget::rounds,
     .one_for_each_expert = true,
     .own_model = [](const Experiment& e) { return e.router_model; }},
    {.name = "dense",
     .label = "Dense",
     .stage = "dense",
     .folder = "baselines/dense",
     .role = Role::baseline,
     .rows = Rows::all,
     .budget = Budget::flops,
     .asked_for = [](const Experiment& e) { return e.baselines.dense; },
     .lr = [](const Experiment& e) { return e.baselines.dense_lr; },
     .warmup_steps = [](const Experiment& e) { return e.baselines.dense_warmup_steps; },
     .colour = {"dense", "#c44e00", "#ff8f52"}},
    {.name = "dense_large_batch",
     .label = "Dense, large batch",
     .stage = "dense large batch",
     .folder = "baselines/dense_large_batch",
     .role = Role::baseline,
     .rows = Rows::all,
     .budget = Budget::flops_of_large_batch,
     .asked_for = [](const Experiment& e) { return e.baselines.dense_large_batch; },
     .lr = [](const Experiment& e) { return e.baselines.dense_large_batch_lr; },
     .warmup_steps = [](const Experiment& e) { return e.baselines.dense_large_batch_warmup_steps; },
     .colour = {"large", "#a87400", "#f0c14b"},
     .dash = {"9 5", "dashed"}},
    {.name = "lory",
     .label = "Lory",
     .stage = "Lory",
     .folder = "lory",
     .role = Role::rival,
     .rows = Rows::all,
     .budget = Budget::flops,
     .asked_for = [](const Experiment& e) { return e.lory.experts > 0; },
     .lr = [](const Experiment& e) { return e.lory.lr; },
     .steps = [](const Experiment& e) { return e.lory.train_steps; },
     .own_model = [](const Experiment& e) { return e.lory_model(); },
     .dense_steps = lory_dense_steps,
     .flops = lory_flops,
     .own_keys = Part::lory,
     .colour = {"lory", "#1a7f37", "#57c26f"},
     .dash = {"14 4", "dashed"}},
    {.name = "random_shards",
     .label = "Random shards",
     .stage = "random shards",
     .folder = "baselines/random_shards",
     .role = Role::control,
     .rows = Rows::random_shard,
     .budget = Budget::expert,
     .one_for_each_expert = true,
     .chosen_by = ChosenBy::turn,
     .asked_for = [](const Experiment& e) { return e.baselines.random_shards; },
     .colour = {"random", "#66717c", "#9aa7b3"},
     .dash = {"1 5", "dotted"}},
    {.name = "tfidf_kmeans",
     .label = "TF-IDF + k-means shards",
     .stage = "TF-IDF shards",
     .folder = "baselines/tfidf_kmeans",
     .role = Role::control,
     .rows = Rows::tfidf_shard,
     .budget = Budget::expert,
     .one_for_each_expert = true,
     .chosen_by = ChosenBy::nearest_cluster,
     .asked_for = [](const Experiment& e) { return e.baselines.tfidf_shards; },
     .colour = {"kmeans", "#a0468a", "#dd8fc4"},
     .dash = {"9 4 1 4", "double"}},
};

}  // namespace

int64_t ModelKind::count(const Experiment& experiment) const {
  if (asked_for != nullptr && !asked_for(experiment)) return 0;
  return one_for_each_expert ? experiment.mixture.experts : 1;
}

std::string ModelKind::unit(int64_t index) const {
  return one_for_each_expert ? fmt::format("{}/{}", folder, index) : std::string(folder);
}

std::span<const ModelKind> model_kinds() { return kKinds; }

const ModelKind* find_kind(std::string_view name) {
  const auto* found = std::ranges::find(kKinds, name, &ModelKind::name);
  return found == std::end(kKinds) ? nullptr : found;
}

const ModelKind& kind_of_unit(std::string_view unit) {
  const auto* found = std::ranges::find_if(kKinds, [&](const ModelKind& kind) {
    const std::string_view folder = kind.folder;
    return unit.starts_with(folder) && (unit.size() == folder.size() || unit[folder.size()] == '/');
  });
  ST_CHECK(found != std::end(kKinds));
  return *found;
}

const ModelKind& first_kind(Role role) {
  const auto* found = std::ranges::find(kKinds, role, &ModelKind::role);
  ST_CHECK(found != std::end(kKinds));
  return *found;
}

}  // namespace smalltalk
