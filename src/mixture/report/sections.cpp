// Building blocks, and the sections that need little: curves, communication, time, experiment,
// how to read it.
#include "mixture/report/sections.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/style.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk::report {
namespace {

using nlohmann::json;

// About one fortieth of a curve: enough to see a trend, too little to hide a spike that lasts.
int smoothing_window(size_t points) {
  const auto window = static_cast<int>(points / 40);
  return std::max(1, window - (window + 1) % 2);
}

// The order in which their curves are drawn: what matters most lies on top.
std::vector<const ModelKind*> back_to_front() {
  std::vector<const ModelKind*> controls, others;
  for (const ModelKind& kind : model_kinds()) {
    if (kind.role == Role::control) controls.push_back(&kind);
    if (kind.role != Role::control && kind.role != Role::router) others.push_back(&kind);
  }
  controls.insert(controls.end(), others.rbegin(), others.rend());
  return controls;
}

}  // namespace

std::string section(const std::string& id, const std::string& title, const std::string& lede,
                    const std::string& body) {
  return fmt::format(
      "<section id=\"{}\" aria-labelledby=\"{}-title\"><h2 id=\"{}-title\">{}</h2>{}{}"
      "</section>\n",
      id, id, id, escape_html(title), lede.empty() ? "" : "<p class=\"lede\">" + lede + "</p>",
      body);
}

std::string html_page(const std::string& title, const std::string& header,
                      const std::string& main) {
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
         "<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>" +
         escape_html(title) + " · SmallTalk</title>\n<style>" + style_sheet() +
         "</style>\n</head>\n<body>\n<header>" + header + "</header>\n<main>\n" + main +
         "</main>\n<script>" + kScript + "</script>\n</body>\n</html>\n";
}

std::string model_key(std::string_view model) {
  return fmt::format("<span class=\"key {}\"></span>{}", model_style(model),
                     escape_html(model_label(model)));
}

std::string missing(const std::string& text) {
  return "<p class=\"missing\">" + escape_html(text) + "</p>";
}

std::string table(const Table& table) {
  const auto kind = [&](size_t i) { return table.columns[i].number ? " class=\"num\"" : ""; };
  std::string out = "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"" +
                    escape_html(table.caption) + "\"><table><thead><tr>";
  for (size_t i = 0; i < table.columns.size(); ++i) {
    out += fmt::format("<th scope=\"col\"{}>{}</th>", kind(i), escape_html(table.columns[i].title));
  }
  out += "</tr></thead><tbody>\n";
  for (const auto& [style, cells] : table.rows) {
    out += style.empty() ? "<tr>" : "<tr class=\"" + style + "\">";
    for (size_t i = 0; i < cells.size(); ++i) {
      out += i == 0 ? "<th scope=\"row\">" + cells[i] + "</th>"
                    : fmt::format("<td{}>{}</td>", kind(i), cells[i]);
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string curves_section(const RunData& data) {
  const std::string title = "Training loss";
  std::map<const ModelKind*, std::vector<const LossCurve*>> by_model;
  for (const LossCurve& curve : data.curves) by_model[curve.kind].push_back(&curve);
  if (by_model.empty()) {
    return section("curves", title, "",
                   missing("No metrics.jsonl with losses under experts/ or baselines/ yet: "
                           "`smalltalk train` writes them."));
  }
  LineChart chart;
  chart.title = "Training loss of mixture and baselines over training tokens";
  chart.x_label = "training tokens in total, over all experts of a model";
  chart.y_label = "loss, nats per token";
  double longest = 0;
  std::string absent;
  for (const ModelKind* kind : back_to_front()) {
    const auto& members = by_model[kind];
    if (members.empty()) {
      // Named only where results.json or the pipeline's habit makes one expect it.
      const bool usual = kind == &subject(data) || kind == &first_kind(Role::baseline);
      if (usual || at(data.results, "models").contains(kind->name)) {
        absent += fmt::format("{}{}", absent.empty() ? "" : ", ", kind->label);
      }
      continue;
    }
    // Experts train side by side: when each has seen t tokens, the model has seen E t.
    const auto scale = static_cast<double>(members.size());
    std::vector<std::vector<Point>> smoothed;
    for (const LossCurve* curve : members) {
      std::vector<Point> points = smooth(curve->points, smoothing_window(curve->points.size()));
      for (Point& p : points) p.x *= scale;
      if (kind->role == Role::mixture && members.size() > 1) {
        chart.series.push_back({fmt::format("expert {}", curve->expert), mixture_style(),
                                thin_out(points, 300), true, ""});
      }
      smoothed.push_back(std::move(points));
    }
    Series series{std::string(kind->label), model_style(kind->name), {}, false, ""};
    if (members.size() > 1) series.label += ", mean of " + std::to_string(members.size());
    series.points = members.size() > 1 ? mean_curve(smoothed, 300) : thin_out(smoothed[0], 300);
    if (series.points.empty()) continue;
    series.note = figure(series.points.back().y);
    longest = std::max(longest, series.points.back().x);
    chart.series.push_back(std::move(series));
  }
  std::reverse(chart.series.begin(), chart.series.end());  // the mixture's key first
  chart.y_from_x = 0.04 * longest;
  std::string body = "<div class=\"tall\">" + line_chart(chart) + "</div>";
  if (!absent.empty()) body += missing("No loss curve yet of: " + absent + ".");
  return section(
      "curves", title,
      "Every model at the same number of tokens read in total; shards together are the whole "
      "corpus, so the experts' mean compares with the dense loss. Thin lines: single experts, each "
      "on its own shard. Smoothed by a running mean over a fortieth of the logged rows; the first "
      "4&#160;% may lie above the frame. Keys show the last value.",
      body);
}

std::string communication_section(const RunData& data) {
  const std::string title = "Communication";
  const json& communication = at(data.results, "communication");
  const auto after = number_at(communication, "world_bytes_after_shards");
  if (!after) {
    return section(
        "communication", title, "",
        missing("results.json has no ledger; `smalltalk launch` and `evaluate` write it."));
  }
  std::string body = fmt::format(
      "<div class=\"zero {}\"><span>{}</span><p>sent outside an expert's own group after the "
      "shards "
      "were written</p></div>",
      *after == 0 ? "good" : "bad", *after == 0 ? "0 bytes" : human_bytes(*after));
  Table rows;
  rows.caption = "Calls and bytes by phase, communicator and call";
  rows.columns = {{"Phase", false}, {"Communicator", false}, {"Call", false}, {"Calls"}, {"Bytes"}};
  const json& phases = at(communication, "phases");
  if (phases.is_array()) {
    // In the order of the pipeline, not of the alphabet.
    std::vector<json> entries(phases.begin(), phases.end());
    const auto rank = [](const json& entry) {
      return std::ranges::find(kPhases, text_at(entry, "phase")) - kPhases.begin();
    };
    std::stable_sort(entries.begin(), entries.end(),
                     [&](const json& a, const json& b) { return rank(a) < rank(b); });
    for (const json& entry : entries) {
      rows.rows.push_back(
          {"",
           {escape_html(text_at(entry, "phase")), escape_html(text_at(entry, "communicator")),
            "<code>" + escape_html(text_at(entry, "call")) + "</code>",
            or_dash(number_at(entry, "calls"), whole),
            or_dash(number_at(entry, "bytes"), human_bytes)}});
    }
  }
  body += rows.rows.empty() ? missing("The ledger has no entries.") : table(rows);
  std::string lede = "Every MPI call of every rank, counted where it is made.";
  const auto collectives = number_at(communication, "collectives");
  const auto bytes = number_at(communication, "bytes_per_router_per_round");
  if (collectives && bytes) {
    lede += fmt::format(
        " The routers exchanged scores {} times; a router's scores of one round are {}.",
        whole(*collectives), human_bytes(*bytes));
  }
  return section("communication", title, lede, body);
}

std::string time_section(const RunData& data) {
  const std::string title = "Time";
  const json& seconds =
      at(data.results, "seconds").is_object() && !at(data.results, "seconds").empty()
          ? at(data.results, "seconds")
          : data.seconds;
  std::vector<std::pair<std::string, double>> stages;
  double total = 0;
  if (seconds.is_object()) {
    std::vector<std::string> order(kPhases.begin(), kPhases.end());
    for (const auto& [stage, value] : seconds.items()) {
      if (std::find(order.begin(), order.end(), stage) == order.end()) order.push_back(stage);
    }
    for (const std::string& stage : order) {
      if (const auto value = number_at(seconds, stage)) {
        stages.emplace_back(stage, *value);
        total += *value;
      }
    }
  }
  if (stages.empty()) {
    return section("time", title, "",
                   missing("seconds.json is missing: each stage records its time."));
  }
  Table rows;
  rows.caption = "Wall time of the common stages";
  rows.columns = {{"Stage", false}, {"Wall time"}, {"Share", false}};
  for (const auto& [stage, value] : stages) {
    rows.rows.push_back({"",
                         {escape_html(stage), human_duration(value),
                          bar(total > 0 ? value / total : 0, mixture_style())}});
  }
  return section("time", title,
                 "Wall time of what all ranks make together, " + human_duration(total) +
                     " in all; how long a model trained is in its training.json.",
                 "<div class=\"narrow\">" + table(rows) + "</div>");
}

std::string experiment_section(const RunData& data) {
  if (data.experiment.empty()) {
    return section("experiment", "The experiment", "", missing("experiment.toml is missing."));
  }
  return section("experiment", "The experiment",
                 "All that decides what this run computes; the same file, seed and number of ranks "
                 "give the same run.",
                 "<details><summary>experiment.toml, resolved</summary><pre>" +
                     escape_html(data.experiment) + "</pre></details>");
}

std::string reading_section() {
  return section(
      "reading", "How to read this page", "",
      "<dl>"
      "<dt>Perplexity</dt><dd>e to the mean loss per token: how many tokens the model hesitates "
      "between, on average. 5 % lower is about 0.05 nats per token. <i>After prefix</i> leaves out "
      "the first tokens of each sequence, which the routers have already read.</dd>"
      "<dt>Mixture</dt><dd>Small routers read a sequence's prefix; the one that likes it best "
      "(highest log-likelihood) names the one expert that models the sequence.</dd>"
      "<dt>Dense</dt><dd>One model of an expert's size on all the data, with as many training "
      "FLOPs "
      "as experts, routers and sharding together. <i>Dense</i> spends them on more steps, "
      "<i>dense, "
      "large batch</i> on a larger batch.</dd>"
      "<dt>Lory</dt><dd>One model whose feed-forwards hold several experts. They are averaged anew "
      "for each segment of a text, with weights that the segment before decides.</dd>"
      "<dt>Random shards</dt><dd>The same experts trained on shards dealt out at random: what is "
      "left "
      "when routing knows nothing.</dd>"
      "<dt>Displaced</dt><dd>In training every expert takes the same number of sequences. A "
      "sequence "
      "whose best expert is full goes to its next choice.</dd>"
      "<dt>Gain</dt><dd>How far the mixture's perplexity lies below the other's, in per cent of "
      "the "
      "other's. One run is one seed: differences of a per cent or so can be chance.</dd>"
      "</dl>");
}

}  // namespace smalltalk::report
