// The result: sentence, cards, table of models, perplexity per domain.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk::report {
namespace {

using nlohmann::json;

const json& model(const RunData& data, std::string_view name) {
  return at(at(data.results, "models"), name);
}
const json& own_of(const RunData& data) { return model(data, subject(data).name); }

std::optional<double> perplexity(const RunData& data, std::string_view name) {
  return number_at(model(data, name), "perplexity/all");
}

// "9.2 % below", "1.3 % above", "level with"
std::string compared(double gain) {
  if (std::abs(gain) < 0.0005) return "level with";
  return percent(std::abs(gain)) + (gain > 0 ? " below" : " above");
}

std::string card(const std::string& value, const std::string& label, const std::string& note,
                 const std::string& style = "") {
  return fmt::format(
      "<div class=\"card {}\"><div class=\"label\">{}</div><div class=\"value\">{}</div>"
      "<div class=\"note\">{}</div></div>\n",
      style, label, value, note);
}

std::string cell(const json& of, const std::string& path, std::string (*format)(double)) {
  return or_dash(number_at(of, path), format);
}

const char* const kNoResults =
    "results.json is missing or has no models: run `smalltalk evaluate` on this run folder.";

// "The mixture of 4 experts"; what it is called inside of a sentence.
std::string full_name(const RunData& data) {
  if (!has_mixture(data)) return std::string(subject(data).label);
  return fmt::format("The mixture of {} experts",
                     or_dash(number_at(data.results, "experts"), whole));
}
std::string short_name(const RunData& data) {
  return has_mixture(data) ? "the mixture" : std::string(subject(data).label);
}

// Of the other system beside the mixture, how it compares with the best dense model.
std::string rival_sentence(const RunData& data, const ModelKind& dense) {
  for (const ModelKind& kind : model_kinds()) {
    const auto value = perplexity(data, kind.name), reference = perplexity(data, dense.name);
    if (kind.role != Role::rival || &kind == &subject(data) || !value || !reference) continue;
    return fmt::format(" {} reaches {}, {} it.", kind.label, figure(*value),
                       compared((*reference - *value) / *reference));
  }
  return "";
}

}  // namespace

bool has_mixture(const RunData& data) { return number_at(data.results, "experts").value_or(1) > 0; }

const ModelKind& subject(const RunData& data) {
  if (has_mixture(data)) return first_kind(Role::mixture);
  const bool rival = at(at(data.results, "models"), first_kind(Role::rival).name).is_object();
  return first_kind(rival ? Role::rival : Role::baseline);
}

std::optional<double> gain_over(const RunData& data, std::string_view name) {
  const auto own = number_at(own_of(data), "perplexity/all");
  const auto other = perplexity(data, name);
  if (!own || !other || *other == 0) return std::nullopt;
  return (*other - *own) / *other;
}

std::vector<std::string> models_in(const json& models) {
  std::vector<std::string> order;
  for (const ModelKind& kind : model_kinds()) {
    if (at(models, kind.name).is_object()) order.emplace_back(kind.name);
  }
  for (const auto& [name, value] : models.items()) {
    if (value.is_object() && std::find(order.begin(), order.end(), name) == order.end()) {
      order.push_back(name);
    }
  }
  return order;
}

const ModelKind* best_baseline(const RunData& data) {
  const ModelKind* best = nullptr;
  for (const ModelKind& kind : model_kinds()) {
    const auto value = perplexity(data, kind.name);
    if (kind.role != Role::baseline || !value) continue;
    if (best == nullptr || *value < *perplexity(data, best->name)) best = &kind;
  }
  return best;
}

std::string headline(const RunData& data) {
  const auto mixture = number_at(own_of(data), "perplexity/all");
  if (!mixture) return "This run has no results yet.";
  const ModelKind* dense = best_baseline(data);
  if (dense == &subject(data)) {
    return fmt::format("A dense model alone reaches test perplexity {}.", figure(*mixture));
  }
  if (dense == nullptr) {
    return full_name(data) + " reaches test perplexity " + figure(*mixture) +
           "; no dense model was trained to compare it with.";
  }
  const bool two = std::ranges::count_if(model_kinds(), [&](const ModelKind& kind) {
                     return kind.role == Role::baseline && perplexity(data, kind.name);
                   }) > 1;
  std::string flops;
  const auto own = number_at(own_of(data), "train_flops");
  const auto theirs = number_at(model(data, dense->name), "train_flops");
  if (own && theirs && *own > 0) {
    const double more = *theirs / *own - 1;
    flops = std::abs(more) < 0.02
                ? " at equal training FLOPs"
                : fmt::format(", which had {} {} training FLOPs", percent(std::abs(more)),
                              more > 0 ? "more" : "fewer");
  }
  return fmt::format("{} reaches test perplexity {}, {} {}{}{}.{}", full_name(data),
                     figure(*mixture), compared(*gain_over(data, dense->name)),
                     two ? "the better of two dense models" : "the dense model",
                     has_mixture(data) ? " of the same size" : "", flops,
                     rival_sentence(data, *dense));
}

std::string cards(const RunData& data) {
  const json& mixture = own_of(data);
  const auto all = number_at(mixture, "perplexity/all");
  if (!all) return "";
  std::string out =
      card(figure(*all), "Test perplexity of " + short_name(data),
           cell(mixture, "perplexity/after_prefix", figure) + " over the tokens after the prefix");
  const ModelKind* dense = best_baseline(data);
  if (dense != nullptr && dense != &subject(data)) {
    if (const auto gain = gain_over(data, dense->name)) {
      out += card(percent(std::abs(*gain)), *gain >= 0 ? "Below dense" : "Above dense",
                  fmt::format("{} has {}", dense->label, figure(*perplexity(data, dense->name))),
                  *gain >= 0 ? "good" : "bad");
    }
  }
  for (const ModelKind& kind : model_kinds()) {
    if (kind.rows != Rows::random_shard) continue;
    if (const auto gain = gain_over(data, kind.name)) {
      out +=
          card(percent(std::abs(*gain)), *gain >= 0 ? "Below random shards" : "Above random shards",
               "what routing adds: the same experts on shards dealt at random");
    }
  }
  if (!has_mixture(data)) return "<div class=\"cards\">" + out + "</div>\n";
  if (const auto bytes = number_at(data.results, "communication/world_bytes_after_shards")) {
    out += card(*bytes == 0 ? "0 bytes" : human_bytes(*bytes), "Sent between experts",
                "after the shards were written", *bytes == 0 ? "good" : "bad");
  }
  if (const auto purity = number_at(data.results, "routing/purity")) {
    out += card(percent(*purity), "Purity of routing",
                "of test sequences go where most of their domain goes");
  }
  const auto total = number_at(mixture, "train_flops");
  const auto routers = number_at(mixture, "router_flops");
  const auto sharding = number_at(mixture, "sharding_flops");
  if (total && routers && sharding && *total > 0) {
    out += card(percent((*routers + *sharding) / *total), "Cost of routing",
                "of the training FLOPs: routers and sharding");
  }
  return "<div class=\"cards\">" + out + "</div>\n";
}

// What is known of a Lory model beside its perplexity: each figure under the name of what it sees.
std::string merging_note(const RunData& data) {
  const ModelKind& kind = first_kind(Role::rival);
  const json& lory = model(data, kind.name);
  const auto parameters = number_at(lory, "parameters");
  if (!parameters) return "";
  std::string beside;
  const ModelKind* dense = best_baseline(data);
  if (dense != nullptr && dense != &kind) {
    beside = fmt::format(" (dense {})",
                         cell(model(data, dense->name), "perplexity/after_segment", figure));
  }
  return fmt::format(
      "<p>{} has {} parameters, of which a token meets as many as in the dense model. In its "
      "perplexity a first segment weighs all experts alike, so that nothing is seen ahead. Behind "
      "the first segments it is {}{}; with first segments by their own mean, as in training, which "
      "looks ahead, {}; with the first segment's choice for the whole sequence, {} behind it.</p>",
      kind.label, human_count(*parameters), cell(lory, "perplexity/after_segment", figure), beside,
      cell(lory, "leaky_perplexity/all", figure),
      cell(lory, "first_segment_perplexity/after_segment", figure));
}

std::string results_section(const RunData& data) {
  const std::vector<std::string> names = models_in(at(data.results, "models"));
  if (names.empty()) return section("results", "Perplexity and cost", "", missing(kNoResults));
  double worst = 0;
  for (const std::string& name : names) worst = std::max(worst, perplexity(data, name).value_or(0));

  Table rows;
  rows.caption = "Test perplexity and training cost of each model";
  rows.columns = {{"Model", false},   {"Perplexity"}, {"after prefix"},
                  {"bits per byte"},  {"validation"}, {short_name(data) + " gains"},
                  {"Training FLOPs"}, {"Steps"},      {"Batch"},
                  {"Peak lr"},        {"Tokens"},     {"FLOPs per sequence"}};
  for (const std::string& name : names) {
    const json& m = model(data, name);
    const auto value = perplexity(data, name);
    const bool own = name == subject(data).name;
    const auto gain = own ? std::nullopt : gain_over(data, name);
    rows.rows.push_back(
        {own ? "own" : "",
         {model_key(name),
          "<b>" + or_dash(value, figure) + "</b>" +
              (value && worst > 0 ? bar(*value / worst, model_style(name)) : ""),
          cell(m, "perplexity/after_prefix", figure), cell(m, "bits_per_byte", figure),
          cell(m, "validation_perplexity/all", figure), or_dash(gain, percent),
          cell(m, "train_flops", power_of_ten), cell(m, "steps", whole),
          cell(m, "batch_size", whole), cell(m, "lr", learning_rate),
          or_dash(number_at(m, "train_tokens"), human_count),
          cell(m, "inference_flops_per_sequence", power_of_ten)}});
  }
  std::string notes =
      "<p>Steps and batch are those of one expert; tokens and FLOPs are totals, with routers and "
      "sharding counted to the mixture. Gains are how far a perplexity lies below the model's. "
      "FLOPs per sequence is what reading one sequence costs, routers included.</p>";
  notes += merging_note(data);
  const json& mixture = own_of(data);
  const auto oracle = number_at(mixture, "oracle_perplexity/all");
  if (oracle) {
    notes += fmt::format(
        "<p>If every test sequence had gone to the expert that turns out to model it best, "
        "perplexity would be {} (after prefix {}): the most that better routing of these experts "
        "could reach.</p>",
        figure(*oracle), cell(mixture, "oracle_perplexity/after_prefix", figure));
  }
  const auto parameters = number_at(model(data, first_kind(Role::mixture).name), "parameters");
  const std::string lede = "Held-out test text; lower is better." +
                           (parameters ? " Every expert and every dense model has " +
                                             human_count(*parameters) + " parameters."
                                       : std::string());
  return section("results", "Perplexity and cost", lede, table(rows) + notes);
}

std::string domains_section(const RunData& data) {
  const std::string title = "Perplexity by domain";
  const json& own = at(own_of(data), "perplexity_per_domain");
  const ModelKind* dense = best_baseline(data);
  static const json kNone;
  const json& theirs =
      dense != nullptr ? at(model(data, dense->name), "perplexity_per_domain") : kNone;
  if (!own.is_object() || own.empty()) {
    return section("domains", title, "", missing("results.json has no perplexity per domain."));
  }
  // Perplexities of domains differ by factors: places on a logarithmic line.
  LogScale scale;
  for (const json* values : {&own, &theirs}) {
    if (!values->is_object()) continue;
    for (const json& value : *values) scale.include(number_at(value, ""));
  }
  Table rows;
  rows.caption = "Test perplexity per domain";
  rows.columns = {{"Domain", false},
                  {std::string(subject(data).label)},
                  {"Dense"},
                  {"Gain"},
                  {"logarithmic scale", false}};
  for (const auto& [domain, value] : own.items()) {
    if (!value.is_number()) continue;
    const auto mine = value.get<double>();
    std::optional<double> other;
    if (theirs.is_object() && theirs.contains(domain) && theirs[domain].is_number()) {
      other = theirs[domain].get<double>();
    }
    const bool worse = other && *other < mine;
    rows.rows.push_back(
        {worse ? "worse" : "",
         {escape_html(domain), "<b>" + figure(mine) + "</b>", or_dash(other, figure),
          other && *other > 0 ? percent((*other - mine) / *other) : "–",
          other ? dumbbell(scale.place(*other), model_style(dense->name), scale.place(mine),
                           model_style(subject(data).name))
                : ""}});
  }
  std::string lede = "Test text of each domain under " + short_name(data);
  lede += dense == nullptr ? "." : " and under the model " + model_key(dense->name) + ".";
  return section("domains", title, lede, table(rows));
}

}  // namespace smalltalk::report
