// A comparison as JSON and as a table for people.
#include "mixture/evaluation/comparison_text.hpp"

#include <fmt/format.h>

#include <cmath>

#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

std::vector<std::string> cells_of(const ComparedRow& row, const Comparison& comparison) {
  const Interval& d = row.difference;
  const bool reference =
      d.low == 0 && d.high == 0 && row.kind->name == comparison.reference && row.step == 0;
  std::string rule = row.rule;
  if (row.temperature > 0 && row.temperature != 1) {
    rule += fmt::format(", T = {:g}", row.temperature);
  }
  return {model_name(row),
          rule,
          row.prefix > 0 ? std::to_string(row.prefix) : "",
          std::to_string(row.experts),
          fmt::format("{:.3f}", row.perplexity),
          fmt::format("{:.4f}", row.bits_per_byte),
          reference ? "reference" : percent_of(d),
          reference ? "" : verdict(d),
          human_count(row.flops_per_sequence)};
}

}  // namespace

nlohmann::ordered_json row_json(const ComparedRow& row) {
  return {{"model", row.kind->name},
          {"rule", row.rule},
          {"prefix_tokens", row.prefix},
          {"experts", row.experts},
          {"temperature", row.temperature},
          {"step", row.step},
          {"nats_per_token", row.nats_per_token},
          {"perplexity", row.perplexity},
          {"bits_per_byte", row.bits_per_byte},
          {"inference_flops_per_sequence", row.flops_per_sequence},
          {"difference_nats_per_token", row.difference.mean},
          {"difference_95_percent", {row.difference.low, row.difference.high}},
          {"verdict", verdict(row.difference)}};
}

std::string model_name(const ComparedRow& row) {
  const std::string_view model = row.kind->name;
  return row.step == 0 ? std::string(model) : fmt::format("{}, step {}", model, row.step);
}

double percent_of(double nats) { return 100 * std::expm1(nats); }

std::string percent_of(const Interval& nats) {
  return fmt::format("{:+.2f} ({:+.2f} to {:+.2f}) %", percent_of(nats.mean), percent_of(nats.low),
                     percent_of(nats.high));
}

std::string markdown_table(const std::vector<std::vector<std::string>>& lines) {
  std::string text;
  for (size_t i = 0; i < lines.size(); ++i) {
    for (const std::string& cell : lines[i]) text += fmt::format("| {} ", cell);
    text += "|\n";
    if (i > 0) continue;
    for (size_t c = 0; c < lines[i].size(); ++c) text += "|---";
    text += "|\n";
  }
  return text;
}

std::string comparison_json(const Comparison& comparison) {
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (const ComparedRow& row : comparison.rows) rows.push_back(row_json(row));
  const nlohmann::ordered_json all = {{"schema", 1},
                                      {"split", comparison.split},
                                      {"reference", comparison.reference},
                                      {"sequences", comparison.num_sequences},
                                      {"documents", comparison.num_documents},
                                      {"rows", rows}};
  return all.dump(2) + "\n";
}

std::string comparison_table(const Comparison& comparison, bool markdown) {
  std::vector<std::vector<std::string>> lines = {
      {"model", "rule", "prefix", "experts", "perplexity", "bits/byte",
       "perplexity against " + comparison.reference, "verdict", "FLOPs/sequence"}};
  for (const ComparedRow& row : comparison.rows) lines.push_back(cells_of(row, comparison));
  return markdown ? markdown_table(lines) : aligned(lines);
}

}  // namespace smalltalk
