// Other ways to choose among the experts: perplexity over the prefix, and the table of intervals.
#include <fmt/format.h>

#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"

namespace smalltalk::report {
namespace {

using nlohmann::json;

const json& rows_of(const RunData& data) { return at(data.comparison, "rows"); }

// Perplexity over the prefix of one rule, in the colour of the model that it chooses in.
Series curve_of(const RunData& data, const std::string& label, const std::string& rule) {
  Series series{label, "other", {}, false, {}};
  for (const json& row : rows_of(data)) {
    const auto prefix = number_at(row, "prefix_tokens"), value = number_at(row, "perplexity");
    if (checkpoint_step(row) > 0 || text_at(row, "rule") != rule || !prefix || !value) continue;
    series.points.push_back({*prefix, *value});
    series.style = model_style(text_at(row, "model"));
    series.note = figure(*value);
  }
  return series;
}

std::optional<double> perplexity_of(const RunData& data, std::string_view model,
                                    const std::string& rule) {
  for (const json& row : rows_of(data)) {
    if (text_at(row, "model") == model && text_at(row, "rule") == rule) {
      return number_at(row, "perplexity");
    }
  }
  return std::nullopt;
}

std::string rules_table(const RunData& data) {
  Table rows;
  rows.caption = "Perplexity of each way to choose among the experts";
  rows.columns = {{"Model", false},
                  {"Chosen by", false},
                  {"Prefix"},
                  {"Experts"},
                  {"Perplexity"},
                  {"bits per byte"},
                  {"perplexity differs by"},
                  {"Verdict", false},
                  {"FLOPs per sequence"}};
  for (const json& row : rows_of(data)) {
    if (!row.is_object()) continue;
    const std::string model = text_at(row, "model");
    const auto prefix = number_at(row, "prefix_tokens");
    const auto temperature = number_at(row, "temperature");
    std::string rule = escape_html(text_at(row, "rule"));
    if (temperature && *temperature > 0 && *temperature != 1) {
      rule += fmt::format(", T = {:g}", *temperature);
    }
    rows.rows.push_back(
        {"",
         {model_key(model) + step_text(row), rule, prefix && *prefix > 0 ? whole(*prefix) : "",
          or_dash(number_at(row, "experts"), whole),
          "<b>" + or_dash(number_at(row, "perplexity"), figure) + "</b>",
          or_dash(number_at(row, "bits_per_byte"), figure), interval_text(difference_of(row)),
          escape_html(text_at(row, "verdict")),
          or_dash(number_at(row, "inference_flops_per_sequence"), power_of_ten)}});
  }
  return table(rows);
}

}  // namespace

std::string rules_section(const RunData& data) {
  if (!rows_of(data).is_array() || rows_of(data).empty()) return "";
  LineChart chart;
  chart.title = "Test perplexity over the tokens that the choice is made by";
  chart.x_label = "tokens of the prefix";
  chart.y_label = "test perplexity";
  chart.whole_x = true;
  Series own = curve_of(data, "Experts as their own routers", "experts as routers");
  own.style = expert_style(1);  // beside the routers' curve, of the same experts
  Series ngrams = curve_of(data, "A linear map of n-grams, learned from the shards", "n-grams");
  ngrams.style = expert_style(2);
  for (const Series& series : {curve_of(data, "Routers", "routers"), own, ngrams,
                               curve_of(data, "The control's experts by TF-IDF", "TF-IDF")}) {
    if (!series.points.empty()) chart.series.push_back(series);
  }
  const std::string reference = text_at(data.comparison, "reference");
  if (!chart.series.empty()) {
    const double from = chart.series[0].points.front().x, to = chart.series[0].points.back().x;
    for (const auto& [label, model, rule, style] :
         {std::tuple{model_label(reference), std::string_view(reference), std::string(),
                     model_style(reference)},
          std::tuple{std::string("Best in hindsight"), first_kind(Role::mixture).name,
                     std::string("best in hindsight"), expert_style(3)}}) {
      const auto value = perplexity_of(data, model, rule);
      if (!value) continue;
      chart.series.push_back({label, style, {{from, *value}, {to, *value}}, false, figure(*value)});
    }
  }
  const std::string lede = fmt::format(
      "{} test sequences of {} documents. Differences are from the model {}; 95&nbsp;% of the "
      "resamples of a paired bootstrap over documents lie in the interval.",
      or_dash(number_at(data.comparison, "sequences"), whole),
      or_dash(number_at(data.comparison, "documents"), whole), escape_html(model_label(reference)));
  return section("rules", "Ways to choose an expert", lede,
                 (chart.series.empty() ? "" : line_chart(chart)) + rules_table(data));
}

}  // namespace smalltalk::report
