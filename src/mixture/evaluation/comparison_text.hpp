// How rows of a comparison are written down, for tables of one run and of a sweep.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "smalltalk/mixture/evaluation/comparison.hpp"

namespace smalltalk {

std::string model_name(const ComparedRow& row);  // with the step, if it is a checkpoint
nlohmann::ordered_json row_json(const ComparedRow& row);
// Of a difference in nats per token: by how many per cent the perplexity is above the other.
double percent_of(double nats);
std::string percent_of(const Interval& nats);
std::string markdown_table(const std::vector<std::vector<std::string>>& lines);  // the first: head

}  // namespace smalltalk
