#include "smalltalk/mixture/run/cells.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace smalltalk {

std::string EvalCell::model() const {
  std::string name = step == 0 ? unit : fmt::format("{}-step-{}", unit, step);
  return merging.empty() ? name : name + "-" + merging;
}

std::string EvalCell::name() const { return split + "-" + model(); }

std::filesystem::path EvalCell::file(const RunLayout& layout) const {
  return layout.evaluation(split, model());
}

bool EvalCell::of_all_routers() const { return unit == first_kind(Role::router).name; }

bool EvalCell::of_routers() const { return unit.starts_with(first_kind(Role::router).folder); }

EvalCell routing_cell(const std::string& split) {
  return {split, std::string(first_kind(Role::router).name)};
}

std::vector<EvalCell> eval_cells(const std::vector<TrainUnit>& units) {
  std::vector<EvalCell> cells;
  const bool routed = std::ranges::any_of(
      units, [](const TrainUnit& unit) { return unit.kind->chosen_by == ChosenBy::routers; });
  for (const std::string split : {"validation", "test"}) {
    if (routed) cells.push_back(routing_cell(split));
    for (const TrainUnit& unit : units) cells.push_back({split, unit.name});
  }
  std::ranges::copy(merging_cells(units, "test"), std::back_inserter(cells));
  for (const TrainUnit& unit : units) {
    if (unit.kind->merges_experts()) cells.push_back({"test", unit.name, 0, kRouting});
  }
  return cells;
}

std::vector<EvalCell> merging_cells(const std::vector<TrainUnit>& units, const std::string& split) {
  std::vector<EvalCell> cells;
  for (const TrainUnit& unit : units) {
    if (!unit.kind->merges_experts()) continue;
    for (const char* merging : {kLeaky, kByFirstSegment}) {
      cells.push_back({split, unit.name, 0, merging});
    }
  }
  return cells;
}

std::vector<EvalCell> router_cells(const std::string& split, int64_t num_experts) {
  std::vector<EvalCell> cells;
  for (int64_t e = 0; e < num_experts; ++e) cells.push_back({split, router_name(e)});
  return cells;
}

}  // namespace smalltalk
