// Figures of an assignment as they stand in routing.jsonl and sharding.json.
#pragma once

#include <nlohmann/json.hpp>

#include "smalltalk/core/assignment/balanced_assignment.hpp"

namespace smalltalk {

inline nlohmann::json stats_json(const AssignmentStats& stats) {
  return {{"displaced", stats.displaced},
          {"mean_score", stats.mean_score},
          {"mean_best_score", stats.mean_best_score},
          {"argmax_counts", stats.argmax_counts},
          {"assigned_counts", stats.assigned_counts}};
}

inline nlohmann::json traffic_json(const SelectionTraffic& traffic) {
  return {{"key_bits", traffic.key_bits},
          {"reductions", traffic.reductions},
          {"numbers", traffic.numbers}};
}

}  // namespace smalltalk
