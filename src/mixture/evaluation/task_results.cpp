// Accuracies from log-likelihoods, in the layout of lm-evaluation-harness.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/utf8.hpp"
#include "smalltalk/mixture/evaluation/bootstrap.hpp"
#include "smalltalk/mixture/evaluation/tasks.hpp"

namespace smalltalk {

using Json = nlohmann::ordered_json;

namespace {

// len() of Python.
int64_t count_characters(std::string_view text) {
  return std::ranges::count_if(text, [](char c) { return !continues_character(c); });
}

// Nothing can be said from one value.
Json standard_error(const std::vector<double>& values) {
  if (values.size() < 2) return "N/A";
  const auto n = static_cast<double>(values.size());
  const double center = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - center) * (value - center);
  return std::sqrt(squares / (n - 1)) / std::sqrt(n);
}

// Of a mean of independent means.
Json standard_error_of_mean(const std::vector<Json>& errors) {
  double squares = 0;
  for (const Json& error : errors) {
    if (!error.is_number()) return "N/A";
    squares += error.get<double>() * error.get<double>();
  }
  return std::sqrt(squares) / static_cast<double>(errors.size());
}

class Results {
 public:
  void add(const std::string& name, const ChoiceMetrics& metrics) {
    describe(name, metrics.acc.size());
    set(name, "acc", mean(metrics.acc), standard_error(metrics.acc));
    if (metrics.acc_norm.empty()) return;
    set(name, "acc_norm", mean(metrics.acc_norm), standard_error(metrics.acc_norm));
  }

  // A group whose accuracy is the mean of those of its phenomena, each counting the same.
  void add_group(const Task& task, const std::vector<double>& acc) {
    std::map<std::string, std::vector<double>> parts;
    for (size_t i = 0; i < acc.size(); ++i) parts[task.items[i].phenomenon].push_back(acc[i]);
    describe(task.name, acc.size());
    std::vector<double> accuracies;
    std::vector<Json> errors;
    for (const auto& [phenomenon, its_acc] : parts) {
      const std::string name = task.name + "_" + phenomenon;
      add(name, {its_acc, {}});
      json["group_subtasks"][task.name].push_back(name);
      accuracies.push_back(mean(its_acc));
      errors.push_back(standard_error(its_acc));
    }
    set(task.name, "acc", mean(accuracies), standard_error_of_mean(errors));
    json["groups"][task.name] = json["results"][task.name];
  }

  Json json = {{"results", Json::object()},          {"group_subtasks", Json::object()},
               {"versions", Json::object()},         {"n-shot", Json::object()},
               {"higher_is_better", Json::object()}, {"n-samples", Json::object()}};

 private:
  void describe(const std::string& name, size_t items) {
    json["results"][name] = {{"alias", name}, {"sample_len", items}};
    json["versions"][name] = 1;
    json["n-shot"][name] = 0;
    json["n-samples"][name] = {{"original", items}, {"effective", items}};
  }
  void set(const std::string& name, const std::string& metric, double value, const Json& error) {
    json["results"][name][metric + ",none"] = value;
    json["results"][name][metric + "_stderr,none"] = error;
    json["higher_is_better"][name][metric] = true;
  }
};

std::string table_of(const Json& models) {
  std::vector<std::vector<std::string>> lines = {{"task", "items", "metric"}};
  for (const auto& [model, of] : models.items()) lines[0].push_back(model);
  for (const auto& [task, values] : models.front()["results"].items()) {
    for (const std::string metric : {"acc", "acc_norm"}) {
      if (!values.contains(metric + ",none")) continue;
      lines.push_back({task, values["sample_len"].dump(), metric});
      for (const Json& of : models) {
        const Json& value = of["results"][task][metric + ",none"];
        const Json& error = of["results"][task][metric + "_stderr,none"];
        lines.back().push_back(fmt::format("{:.4f}", value.get<double>()));
        if (error.is_number()) {
          lines.back().back() += fmt::format(" +- {:.4f}", error.get<double>());
        }
      }
    }
  }
  return aligned(lines);
}

}  // namespace

ChoiceMetrics grade(const Task& task, const std::vector<double>& log_likelihoods) {
  ChoiceMetrics metrics;
  auto first = log_likelihoods.begin();
  for (const TaskItem& item : task.items) {
    const auto last = first + std::ssize(item.choices);
    metrics.acc.push_back(std::max_element(first, last) - first == item.answer ? 1 : 0);
    if (!task.pairs) {
      std::vector<double> per_character;
      for (const std::string& choice : item.choices) {
        per_character.push_back(first[std::ssize(per_character)] /
                                static_cast<double>(count_characters(choice)));
      }
      const auto best = std::ranges::max_element(per_character) - per_character.begin();
      metrics.acc_norm.push_back(best == item.answer ? 1 : 0);
    }
    first = last;
  }
  return metrics;
}

TaskReport TaskEvaluation::report() const {
  Json models = Json::object();
  for (const TrainedModel& model : models_of(units_)) {
    const std::string name(model.kind->name);
    Results results;
    Json& json = results.json;
    for (size_t t = 0; t < tasks_.size(); ++t) {
      const Task& task = tasks_[t];
      const Answers answers = answers_of(t, model);
      const ChoiceMetrics metrics = grade(task, answers.log_likelihoods);
      if (task.items[0].phenomenon.empty()) {
        results.add(task.name, metrics);
      } else {
        results.add_group(task, metrics.acc);
      }
      if (model.kind->role == Role::mixture) json["expert_shares"][task.name] = answers.shares;
      json["cut_to_max_length"][task.name] = {{"requests", asked_[t].requests_cut},
                                              {"choices", asked_[t].choices_cut}};
    }
    json["config"] = {{"model", "smalltalk"}, {"model_args", name}};
    json["max_length"] = experiment_.data.seq_length;
    models[name] = json;
  }
  return {Json{{"models", models}}.dump(2) + "\n", table_of(models)};
}

}  // namespace smalltalk
