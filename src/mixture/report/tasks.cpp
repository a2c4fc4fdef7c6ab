// Downstream tasks: figures as lm-evaluation-harness gives them, models side by side.
#include <fmt/format.h>

#include <set>

#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"

namespace smalltalk::report {
namespace {

using nlohmann::json;

// The value under a key that may hold a slash.
const json& member(const json& value, const std::string& key) {
  static const json kNull;
  const auto found = value.is_object() ? value.find(key) : value.end();
  return value.is_object() && found != value.end() ? *found : kNull;
}

std::string with_error(const json& of, const std::string& metric) {
  const auto value = number_at(of, metric + ",none"),
             error = number_at(of, metric + "_stderr,none");
  if (!value) return "–";
  const auto text = [&](double number) {
    return metric == "perplexity" ? figure(number) : fmt::format("{:.4f}", number);
  };
  return text(*value) + (error ? "&nbsp;± " + text(*error) : "");
}

std::vector<double> numbers(const json& values) {
  std::vector<double> out;
  if (!values.is_array()) return out;
  for (const json& value : values) out.push_back(number_at(value, "").value_or(0));
  return out;
}

}  // namespace

std::string tasks_section(const RunData& data) {
  const json& models = at(data.tasks, "models");
  const std::vector<std::string> names = models_in(models);
  std::set<std::string> tasks, parts;  // parts: of a group
  for (const std::string& name : names) {
    const json& of = member(models, name);
    for (const auto& [task, value] : at(of, "results").items()) tasks.insert(task);
    for (const auto& [group, members] : at(of, "group_subtasks").items()) {
      for (const json& part : members) parts.insert(text_at(part, ""));
    }
  }
  if (tasks.empty()) return "";
  Table rows;
  rows.caption = "Each model on each task";
  rows.columns = {{"Task", false}, {"Items"}, {"Examples"}, {"Metric", false}};
  for (const std::string& name : names) rows.columns.push_back({model_label(name)});
  rows.columns.push_back({"Who answers for the mixture", false});
  for (const std::string& task : tasks) {
    for (const std::string metric : {"acc", "acc_norm", "perplexity"}) {
      std::vector<std::string> cells = {escape_html(task), "–", "–", metric};
      bool measured = false;
      for (const std::string& name : names) {
        const json& of = member(at(member(models, name), "results"), task);
        cells.push_back(with_error(of, metric));
        measured |= cells.back() != "–";
        if (const auto items = number_at(of, "sample_len")) cells[1] = whole(*items);
        const json& examples = member(at(member(models, name), "n-shot"), task);
        if (const auto count = number_at(examples, "")) cells[2] = whole(*count);
      }
      if (!measured) continue;
      const json& mixture = member(models, std::string(first_kind(Role::mixture).name));
      const json& shares = member(at(mixture, "expert_shares"), task);
      cells.push_back(metric == "acc" ? split_bar(numbers(shares)) : "");
      rows.rows.emplace_back(parts.contains(task) ? "part" : "", cells);
    }
  }
  return section(
      "tasks", "Downstream tasks",
      "Figures ± standard error, as lm-evaluation-harness defines them: a choice, or the context "
      "before it, is right if it is the likeliest (acc), or the likeliest per character "
      "(acc_norm); a target without choices, if each of its tokens is the likeliest. Its "
      "perplexity is that of a whole target: lower is better. Examples are those before each "
      "item (few-shot). The routers choose one expert an item; the last column shows which.",
      table(rows));
}

}  // namespace smalltalk::report
