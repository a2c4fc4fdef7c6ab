// How the routers of a Lory model weigh its experts.
#include <fmt/format.h>

#include <algorithm>

#include "mixture/evaluation/lory_routing.hpp"
#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"

namespace smalltalk::report {
namespace {

using nlohmann::json;

std::vector<int64_t> integers_at(const json& value, std::string_view path) {
  std::vector<int64_t> numbers;
  if (!at(value, path).is_array()) return numbers;
  for (const json& number : at(value, path)) {
    if (number.is_number_integer()) numbers.push_back(number.get<int64_t>());
  }
  return numbers;
}

std::string layers_table(const json& layers, int64_t experts) {
  Table rows;
  rows.caption = "How the router of each layer weighs the experts";
  rows.columns = {{"Layer"},         {"Active"},      {"Experts ever active"},
                  {"Entropy, nats"}, {"of the most"}, {"Largest weight"}};
  const auto unless_two = [&](const json& layer, const char* key, const auto& format) {
    return experts > 2 ? or_dash(number_at(layer, key), format) : std::string("–");
  };
  for (const json& layer : layers) {
    rows.rows.push_back(
        {"",
         {or_dash(number_at(layer, "layer"), whole), unless_two(layer, "active_share", percent),
          unless_two(layer, "active_experts",
                     [&](double count) { return fmt::format("{} of {}", whole(count), experts); }),
          or_dash(number_at(layer, "entropy"), figure),
          or_dash(number_at(layer, "entropy_share"), percent),
          or_dash(number_at(layer, "largest_weight"), percent)}});
  }
  return table(rows);
}

// [domains][E] -> [E][domains]
Matrix by_expert(const Matrix& by_domain, size_t experts) {
  Matrix result(experts, std::vector<double>(by_domain.size()));
  for (size_t d = 0; d < by_domain.size(); ++d) {
    for (size_t e = 0; e < experts; ++e) result[e][d] = by_domain[d][e];
  }
  return result;
}

std::string domain_maps(const json& routing, int64_t experts) {
  const std::vector<std::string> domains = names_at(routing, "domains");
  const double even = 1 / static_cast<double>(experts);
  std::vector<HeatMap> maps;
  double darkest = 4 * even;
  if (!at(routing, "by_domain").is_array()) return "";
  for (const json& layer : at(routing, "by_domain")) {
    const Matrix weights = matrix_at(at(layer, "weights"), static_cast<size_t>(experts));
    if (weights.empty() || weights.size() != domains.size()) return "";
    for (const auto& row : weights) darkest = std::max(darkest, *std::ranges::max_element(row));
    maps.push_back({"Layer " + or_dash(number_at(layer, "layer"), whole) + ": mean weights",
                    by_expert(weights, static_cast<size_t>(experts))});
  }
  if (maps.empty()) return "";
  for (HeatMap& map : maps) {
    map.darkest = std::min(darkest, 1.0);
    map.decimals = true;
  }
  return fmt::format(
             "<p>Mean weights of the experts in the sequences of each domain, per cent, in the "
             "first, middle and last layer that merges. An even share is {}.</p>",
             percent(even)) +
         heat_maps(maps, domains, maps.back().by_expert);
}

}  // namespace

std::string lory_section(const RunData& data) {
  const std::string title = "Lory's routing";
  const json& model = at(at(data.results, "models"), first_kind(Role::rival).name);
  if (!model.is_object()) return "";
  const json& routing = at(model, "routing");
  const double count = number_at(routing, "experts").value_or(0);
  const auto experts = static_cast<int64_t>(std::clamp(count, 0.0, 65535.0));
  if (experts < 1 || !at(routing, "layers").is_array()) {
    return section(
        "lory", title, "",
        missing("results.json has no routing of Lory: `smalltalk evaluate` writes it, if "
                "sequences are longer than a segment."));
  }
  std::string body;
  for (const std::string& warning : routing_warnings(integers_at(routing, "dead_routers"),
                                                     integers_at(routing, "dead_experts"))) {
    body += missing(warning + ".");
  }
  body += layers_table(at(routing, "layers"), experts) + domain_maps(routing, experts);
  return section(
      "lory", title,
      fmt::format(
          "How the routers weigh the {} experts of each layer, over {} segments of the test "
          "text. First segments, which weigh all alike, are left out. An expert is active "
          "in a segment where it has more than twice an even share; its share is of all "
          "segments and experts. Entropy is 0 if one expert has all the weight, and the "
          "most, log {}, if all weigh alike.",
          experts, or_dash(number_at(routing, "segments"), whole), experts),
      body);
}

}  // namespace smalltalk::report
