// Accuracies and perplexities from log-likelihoods, in the layout of lm-evaluation-harness.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "mixture/evaluation/python_random.hpp"
#include "mixture/run/text_or_nothing.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"
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

// Of a sample. REQUIRES two values at least.
double deviation(std::span<const double> values) {
  const double center = mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - center) * (value - center);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

// Nothing can be said from one value.
Json standard_error(const std::vector<double>& values) {
  if (values.size() < 2) return "N/A";
  return deviation(values) / std::sqrt(static_cast<double>(values.size()));
}

// The first of equals.
int64_t likeliest(std::span<const double> log_likelihoods) {
  return std::ranges::max_element(log_likelihoods) - log_likelihoods.begin();
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
  void add(const std::string& name, int64_t num_fewshot, const TaskMetrics& metrics) {
    describe(name, metrics.acc.size(), num_fewshot);
    set(name, "acc", mean(metrics.acc), standard_error(metrics.acc));
    if (!metrics.acc_norm.empty()) {
      set(name, "acc_norm", mean(metrics.acc_norm), standard_error(metrics.acc_norm));
    }
    if (!metrics.log_likelihoods.empty()) {
      const TargetPerplexity perplexity = perplexity_of(metrics.log_likelihoods);
      set(name, "perplexity", perplexity.value,
          perplexity.error ? Json(*perplexity.error) : Json("N/A"));
    }
  }

  // A group whose accuracy is the mean of those of its phenomena, each counting the same.
  void add_group(const Task& task, const std::vector<double>& acc) {
    std::map<std::string, std::vector<double>> parts;
    for (size_t i = 0; i < acc.size(); ++i) parts[task.items[i].phenomenon].push_back(acc[i]);
    describe(task.name, acc.size(), 0);
    std::vector<double> accuracies;
    std::vector<Json> errors;
    for (const auto& [phenomenon, its_acc] : parts) {
      const std::string name = task.name + "_" + phenomenon;
      add(name, 0, {its_acc, {}, {}});
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
  void describe(const std::string& name, size_t items, int64_t num_fewshot) {
    json["results"][name] = {{"alias", name}, {"sample_len", items}};
    json["versions"][name] = 1;
    json["n-shot"][name] = num_fewshot;
    json["n-samples"][name] = {{"original", items}, {"effective", items}};
  }
  void set(const std::string& name, const std::string& metric, double value, const Json& error) {
    json["results"][name][metric + ",none"] = value;
    json["results"][name][metric + "_stderr,none"] = error;
    json["higher_is_better"][name][metric] = metric != "perplexity";
  }
};

// What an earlier report says of tasks that this one does not hold, of a model of the same weights.
// `replaced` gets the tasks whose results were others.
void add_other_tasks(const Json& earlier, Json& model, std::set<std::string>& replaced) {
  const auto value_of = [](const Json& json, const char* key) {
    return json.is_object() ? json.value(key, Json::object()) : Json::object();
  };
  const Json weights = value_of(value_of(earlier, "config"), "weights");
  if (weights != model["config"]["weights"]) return;
  std::set<std::string> renewed;
  const Json results = value_of(earlier, "results"), groups = value_of(earlier, "group_subtasks");
  for (const auto& [task, result] : model["results"].items()) {
    renewed.insert(task);
    if (results.contains(task) && results[task] != result) replaced.insert(task);
  }
  for (const auto& [group, tasks] : groups.items()) {
    if (renewed.contains(group)) renewed.insert(tasks.begin(), tasks.end());
  }
  for (const auto& [key, of_tasks] : earlier.items()) {
    if (!of_tasks.is_object() || key == "config") continue;
    for (const auto& [task, value] : of_tasks.items()) {
      if (!renewed.contains(task)) model[key][task] = value;
    }
  }
}

std::string table_of(const Json& models) {
  std::vector<std::vector<std::string>> lines = {{"task", "items", "n-shot", "metric"}};
  for (const auto& [model, of] : models.items()) lines[0].push_back(model);
  for (const auto& [task, values] : models.front()["results"].items()) {
    for (const std::string metric : {"acc", "acc_norm", "perplexity"}) {
      if (!values.contains(metric + ",none")) continue;
      lines.push_back(
          {task, values["sample_len"].dump(), models.front()["n-shot"][task].dump(), metric});
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

TaskMetrics grade(const Task& task, const ChoiceScores& scores) {
  TaskMetrics metrics;
  std::span<const double> left = scores.log_likelihoods;
  for (const TaskItem& item : task.items) {
    if (task.kind == TaskKind::target) {
      metrics.acc.push_back(scores.greedy[metrics.acc.size()]);
      metrics.log_likelihoods.push_back(left[0]);
      left = left.subspan(1);
      continue;
    }
    const auto of_item = left.first(item.num_requests());
    left = left.subspan(of_item.size());
    metrics.acc.push_back(likeliest(of_item) == item.answer ? 1 : 0);
    if (task.kind == TaskKind::pairs) continue;
    std::vector<double> per_character;
    for (size_t i = 0; i < of_item.size(); ++i) {
      const std::string& text = task.kind == TaskKind::contexts ? item.context(i) : item.choice(i);
      per_character.push_back(of_item[i] / static_cast<double>(count_characters(text)));
    }
    metrics.acc_norm.push_back(likeliest(per_character) == item.answer ? 1 : 0);
  }
  return metrics;
}

// As lm_eval's bootstrap_stderr() of its perplexity(), which seeds each thousand by its number.
TargetPerplexity perplexity_of(std::span<const double> log_likelihoods) {
  TargetPerplexity perplexity{std::exp(-mean(log_likelihoods)), std::nullopt};
  if (log_likelihoods.size() < 2) return perplexity;
  constexpr uint64_t kChunks = 100, kChunkSize = 1000;
  const auto size = static_cast<double>(log_likelihoods.size());
  std::vector<double> resampled;
  for (uint64_t chunk = 0; chunk < kChunks; ++chunk) {
    PythonRandom random(chunk);
    for (uint64_t i = 0; i < kChunkSize; ++i) {
      double sum = 0;
      for (size_t k = 0; k < log_likelihoods.size(); ++k) {
        sum += log_likelihoods[static_cast<size_t>(random.random() * size)];
      }
      resampled.push_back(std::exp(-sum / size));
    }
  }
  perplexity.error = deviation(resampled);
  return perplexity;
}

std::string TaskEvaluation::weights_of(const TrainedModel& model) const {
  Hasher hasher;
  const auto add = [&](size_t cell) {  // of the first task
    hasher.update(std::as_bytes(std::span(cells_[cell].weights)));
  };
  for (const TrainUnit* unit : model.units) add(static_cast<size_t>(unit - units_.data()));
  if (model.kind->chosen_by == ChosenBy::routers) {
    for (int64_t e = 0; e < experiment_.mixture.experts; ++e) {
      add(units_.size() + static_cast<size_t>(e));
    }
  }
  return hasher.digest();
}

TaskReport TaskEvaluation::report() const {
  Json models = Json::object();
  const auto add = [&](const TrainedModel& model, const std::string& name, MergeBy merging) {
    Results results;
    Json& json = results.json;
    for (size_t t = 0; t < tasks_.size(); ++t) {
      const Task& task = tasks_[t];
      const Answers answers = answers_of(t, model, merging);
      const TaskMetrics metrics = grade(task, answers.scores);
      if (task.items[0].phenomenon.empty()) {
        results.add(task.name, task.num_fewshot, metrics);
      } else {
        results.add_group(task, metrics.acc);
      }
      if (model.kind->role == Role::mixture) json["expert_shares"][task.name] = answers.shares;
      json["cut_to_max_length"][task.name] = {{"requests", asked_[t].requests_cut},
                                              {"choices", asked_[t].choices_cut}};
      json["prompt"][task.name] = task.prompt;
      if (task.num_fewshot > 0) json["fewshot_seed"][task.name] = task.fewshot_seed;
    }
    json["config"] = {{"model", "smalltalk"}, {"model_args", name}, {"weights", weights_of(model)}};
    json["max_length"] = experiment_.data.seq_length;
    models[name] = json;
  };
  for (const TrainedModel& model : models_of(units_)) {
    const std::string name(model.kind->name);
    add(model, name, MergeBy::segments);
    if (model.kind->merges_experts()) add(model, name + "_by_prompt", MergeBy::prompt);
  }
  const std::string table = table_of(models);
  const auto earlier = parse_json_row<Json>(text_or_nothing(layout_.task_results()));
  std::set<std::string> replaced;
  if (earlier && earlier->contains("models")) {
    for (const auto& [name, model] : earlier->at("models").items()) {
      if (!models.contains(name)) continue;  // of units that are not asked for
      add_other_tasks(model, models[name], replaced);
    }
  }
  if (!replaced.empty()) {
    log_info(
        fmt::format("in {}, these take the place of earlier results by other examples, "
                    "prompts or items: {}",
                    layout_.task_results().string(), fmt::join(replaced, ", ")));
  }
  return {Json{{"models", models}}.dump(2) + "\n", table};
}

}  // namespace smalltalk
