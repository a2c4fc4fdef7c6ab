// Who gets what: routing of domains, shares of experts, routing over the rounds of the EM.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"

namespace smalltalk::report {
namespace {

using nlohmann::json;

// One line chart over the rounds; each series is a key of routing.jsonl, divided by another.
std::string rounds_chart(const RunData& data, LineChart chart,
                         const std::vector<std::array<std::string, 4>>& keys) {
  for (const auto& [key, divisor, label, style] : keys) {
    Series series{label, style, {}, false, ""};
    for (const json& row : data.rounds) {
      const auto round = number_at(row, "round");
      const auto value = number_at(row, key);
      const auto over = divisor.empty() ? std::optional(1.0) : number_at(row, divisor);
      if (!round || !value || !over || *over == 0) continue;
      series.points.push_back({*round, divisor.empty() ? *value : 100 * *value / *over});
    }
    chart.series.push_back(std::move(series));
  }
  chart.x_label = "round";
  chart.whole_x = true;
  return "<div>" + line_chart(chart) + "</div>";
}

std::string router_loss_chart(const RunData& data) {
  LineChart chart;
  chart.title = "Training loss of each router after each round";
  chart.y_label = "loss of each router, nats per token";
  chart.x_label = "round";
  chart.whole_x = true;
  for (const json& row : data.rounds) {
    const json& losses = at(row, "router_loss");
    const auto round = number_at(row, "round");
    if (!losses.is_array() || !round) continue;
    for (size_t e = 0; e < losses.size(); ++e) {
      if (chart.series.size() <= e) {
        chart.series.push_back({fmt::format("router {}", e), expert_style(e), {}, false, ""});
      }
      if (losses[e].is_number())
        chart.series[e].points.push_back({*round, losses[e].get<double>()});
    }
  }
  return chart.series.empty() ? "" : "<div>" + line_chart(chart) + "</div>";
}

std::string utilisation_chart(const RunData& data) {
  StackedColumns chart;
  chart.title = "Share of sequences that each router scores best, per round";
  chart.x_label = "round";
  chart.y_label = "sequences that each router likes best";
  for (const json& row : data.rounds) {
    const json& counts = at(row, "argmax_counts");
    const auto round = number_at(row, "round");
    if (!counts.is_array() || !round) continue;
    chart.names.push_back(whole(*round));
    chart.rows.emplace_back();
    for (const json& count : counts) {
      chart.rows.back().push_back(count.is_number() ? count.get<double>() : 0);
    }
  }
  return chart.rows.empty() ? "" : "<div>" + stacked_columns(chart) + "</div>";
}

}  // namespace

std::string routing_map_section(const RunData& data) {
  const std::string title = "Which expert takes which domain";
  const json& routing = at(data.results, "routing");
  const std::vector<std::string> domains = names_at(routing, "domains");
  const Matrix test = matrix_at(at(routing, "expert_by_domain"), domains.size());
  if (test.empty() || domains.empty()) {
    return section(
        "map", title, "",
        missing("results.json has no routing by domain; `smalltalk evaluate` writes it."));
  }
  std::vector<HeatMap> maps = {{"Test: each sequence to its best router", test}};
  const Matrix train = matrix_at(at(routing, "train_expert_by_domain"), domains.size());
  if (!train.empty()) maps.push_back({"Training: balanced assignment", train});
  const std::string body = heat_maps(maps, domains, test);
  std::string lede =
      "Per cent of each domain's sequences that go to each expert. Training and routing never saw "
      "these labels; they are used for this picture only.";
  if (const auto purity = number_at(routing, "purity")) {
    lede += fmt::format(
        " Purity {}: the share of test sequences that go where most of their domain "
        "goes.",
        percent(*purity));
  }
  return section("map", title, lede, body);
}

std::string experts_section(const RunData& data) {
  const std::string title = "Experts";
  const json& experts = at(data.results, "per_expert");
  if (!experts.is_array() || experts.empty()) {
    return section("experts", title, "",
                   missing("results.json has no figures per expert; `smalltalk evaluate` writes "
                           "them."));
  }
  double sequences = 0;
  double largest = 0;
  LogScale scale;
  for (const json& row : experts) sequences += number_at(row, "train_sequences").value_or(0);
  for (const json& row : experts) {
    if (sequences > 0) {
      largest = std::max(largest, number_at(row, "train_sequences").value_or(0) / sequences);
    }
    largest = std::max(largest, number_at(row, "eval_share").value_or(0));
    scale.include(number_at(row, "perplexity"));
    scale.include(number_at(row, "dense_perplexity"));
  }
  Table rows;
  rows.caption = "Shares and perplexity of each expert";
  rows.columns = {{"Expert", false},
                  {"Training sequences"},
                  {"Share of training"},
                  {"Share of test"},
                  {"Perplexity"},
                  {"Dense, same text"},
                  {"Gain"},
                  {"logarithmic scale", false}};
  for (size_t i = 0; i < experts.size(); ++i) {
    const json& row = experts[i];
    const auto train = number_at(row, "train_sequences");
    const auto share = number_at(row, "eval_share");
    const auto own = number_at(row, "perplexity");
    const auto dense = number_at(row, "dense_perplexity");
    const auto name = number_at(row, "expert");
    const std::string style = expert_style(i);
    const auto share_cell = [&](double value) {
      return percent(value) + bar(largest > 0 ? value / largest : 0, style);
    };
    rows.rows.push_back(
        {own && dense && *dense < *own ? "worse" : "",
         {fmt::format("<span class=\"key {}\"></span>{}", style, or_dash(name, whole)),
          or_dash(train, whole), train && sequences > 0 ? share_cell(*train / sequences) : "–",
          share ? share_cell(*share) : "–", "<b>" + or_dash(own, figure) + "</b>",
          or_dash(dense, figure),
          own && dense && *dense > 0 ? percent((*dense - *own) / *dense) : "–",
          own && dense
              ? dumbbell(scale.place(*dense), dense_style(), scale.place(*own), mixture_style())
              : ""}});
  }
  return section("experts", title,
                 "Training shards are balanced by construction; at test time every sequence simply "
                 "goes to its best router. Perplexity is over the test sequences routed to the "
                 "expert, beside the dense model on the same sequences.",
                 table(rows));
}

std::string rounds_section(const RunData& data) {
  const std::string title = "Routing over the rounds";
  if (data.rounds.empty()) {
    return section("rounds", title, "",
                   missing("routing.jsonl is missing: `smalltalk route` writes a line a round."));
  }
  LineChart scores;
  scores.title = "Mean router score per round";
  scores.y_label = "mean score, nats per prefix (higher is better)";
  LineChart moved;
  moved.title = "Share of sequences displaced by balancing and share that changed router";
  moved.y_label = "per cent of sequences";
  moved.y_from_zero = true;
  std::string body =
      "<div class=\"grid\">" +
      rounds_chart(data, scores,
                   {{"mean_best_score", "", "best router", mixture_style()},
                    {"mean_score", "", "router assigned by balancing", dense_style()}}) +
      rounds_chart(data, moved,
                   {{"displaced", "sequences", "displaced by balancing", dense_style()},
                    {"changed", "probe", "changed router since the round before (probe)",
                     mixture_style()}}) +
      utilisation_chart(data) + router_loss_chart(data) + "</div>";
  const auto displaced = number_at(data.sharding, "displaced");
  const auto sequences = number_at(data.sharding, "sequences");
  if (displaced && sequences && *sequences > 0) {
    body += fmt::format(
        "<p>At the final sharding of {} sequences, {} of them ({}) did not get their best router "
        "because its shard was full.</p>",
        whole(*sequences), whole(*displaced), percent(*displaced / *sequences));
  }
  return section(
      "rounds", title,
      fmt::format("{} rounds of balanced EM; the first deals its sequences out at random, "
                  "so it has no scores. A router that starves would show as a "
                  "vanishing band in the columns.",
                  data.rounds.size()),
      body);
}

}  // namespace smalltalk::report
