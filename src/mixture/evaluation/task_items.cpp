// From a task's file to rows of tokens.
#include <fmt/format.h>

#include <array>
#include <map>
#include <nlohmann/json.hpp>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/data/documents.hpp"
#include "smalltalk/mixture/evaluation/tasks.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

// What stands before and behind a context.
const std::map<std::string, std::pair<std::string, std::string>> kPrompts = {
    {"plain", {"", ""}}, {"question", {"Question: ", "\nAnswer:"}}};

const json& value_of(const json& item, const char* key, const std::string& place) {
  const auto found = item.find(key);
  if (found == item.end()) throw Error(fmt::format("{}: it has no \"{}\"", place, key));
  return *found;
}

std::string text_of(const json& value, const char* key, const std::string& place) {
  if (!value.is_string()) throw Error(fmt::format("{}: its \"{}\" is not a text", place, key));
  return value.get<std::string>();
}

std::string choice_of(const json& value, const char* key, const std::string& place) {
  std::string text = text_of(value, key, place);
  if (text.empty()) throw Error(fmt::format("{}: its \"{}\" is an empty text", place, key));
  return text;
}

TaskItem read_pair(const json& item, const std::string& place) {
  TaskItem pair;
  pair.contexts = {""};
  for (const char* key : {"good", "bad"}) {
    pair.choices.push_back(choice_of(value_of(item, key, place), key, place));
  }
  if (item.contains("phenomenon")) {
    pair.phenomenon = choice_of(item["phenomenon"], "phenomenon", place);
  }
  return pair;
}

std::vector<std::string> choices_of(const json& values, const char* key, const std::string& place) {
  if (!values.is_array() || values.empty()) {
    throw Error(fmt::format("{}: its \"{}\" is not a list of texts", place, key));
  }
  std::vector<std::string> texts;
  for (const json& value : values) texts.push_back(choice_of(value, key, place));
  return texts;
}

TaskItem read_target(const json& item, const std::string& place) {
  TaskItem target;
  target.contexts = {text_of(value_of(item, "context", place), "context", place)};
  target.choices = {choice_of(item["target"], "target", place)};
  return target;
}

TaskItem read_choices(const json& item, TaskKind kind, const std::string& place) {
  TaskItem question;
  const json& context = value_of(item, "context", place);
  question.contexts = kind == TaskKind::contexts ? choices_of(context, "context", place)
                                                 : std::vector{text_of(context, "context", place)};
  question.choices = choices_of(value_of(item, "choices", place), "choices", place);
  if (kind == TaskKind::contexts && question.choices.size() > 1) {
    throw Error(place + ": it has several contexts, so its \"choices\" must be a single one");
  }
  const json& answer = value_of(item, "answer", place);
  const size_t last = question.num_requests() - 1;
  if (!answer.is_number_unsigned() || answer.get<uint64_t>() > last) {
    throw Error(fmt::format("{}: its \"answer\" is not a number from 0 to {}", place, last));
  }
  question.answer = answer.get<int64_t>();
  return question;
}

TaskKind kind_of(const json& item) {
  if (item.contains("good") || item.contains("bad")) return TaskKind::pairs;
  if (item.contains("target") && !item.contains("choices")) return TaskKind::target;
  const auto context = item.find("context");
  return context != item.end() && context->is_array() ? TaskKind::contexts : TaskKind::choices;
}

TaskItem read_item(const json& item, TaskKind kind, const std::string& place) {
  if (kind == TaskKind::pairs) return read_pair(item, place);
  if (kind == TaskKind::target) return read_target(item, place);
  return read_choices(item, kind, place);
}

// What Python's str.rstrip() takes away.
constexpr std::array<std::string_view, 29> kWhiteSpace = {
    "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",
    "\x1f",   " ",      "\u0085", "\u00a0", "\u1680", "\u2000", "\u2001", "\u2002",
    "\u2003", "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200a",
    "\u2028", "\u2029", "\u202f", "\u205f", "\u3000"};

std::string_view without_white_space_behind(std::string_view text) {
  for (bool found = true; found;) {
    found = false;
    for (const std::string_view space : kWhiteSpace) {
      if (!text.ends_with(space)) continue;
      text.remove_suffix(space.size());
      found = true;
    }
  }
  return text;
}

// White space behind the context belongs to the continuation. Rarely the context alone has other
// tokens than in front of the continuation; then they are mixed here as there.
ChoiceRow encode_choice(const TaskItem& item, size_t request, const Tokenizer& tokenizer) {
  const std::string context = item.examples + item.context(request);
  const std::string& choice = item.choice(request);
  const auto given = tokenizer.encode(without_white_space_behind(context));
  const auto whole = tokenizer.encode(context + " " + choice);
  if (whole.size() <= given.size()) {
    throw Error(fmt::format("{}: the choice \"{}\" adds no token to its context", item.place,
                            printable(choice)));
  }
  ChoiceRow row;
  row.tokens.assign(given.begin(), given.end());
  if (given.empty()) row.tokens.push_back(kEndToken);
  row.given = std::ssize(row.tokens);
  row.tokens.insert(row.tokens.end(), whole.begin() + std::ssize(given), whole.end());
  return row;
}

}  // namespace

std::string_view kind_name(TaskKind kind) {
  switch (kind) {
    case TaskKind::choices:
      return "multiple choice";
    case TaskKind::contexts:
      return "several contexts";
    case TaskKind::pairs:
      return "pairs";
    case TaskKind::target:
      return "targets";
  }
  return "";
}

std::vector<std::string> prompt_names() {
  std::vector<std::string> names;
  for (const auto& [name, texts] : kPrompts) names.push_back(name);
  return names;
}

Task read_task(const fs::path& file, const std::string& prompt) {
  const auto found = kPrompts.find(prompt);
  if (found == kPrompts.end()) throw Error(fmt::format("there is no prompt \"{}\"", prompt));
  const std::string &before = found->second.first, &behind = found->second.second;
  Task task;
  task.file = file.string();
  task.prompt = prompt;
  task.name = without_compression(file).stem().string();
  if (task.name == "items") task.name = fs::absolute(file).parent_path().filename().string();
  // Bytes that are no UTF-8, which JSON cannot hold, become marks.
  task.name = json::parse(json(task.name).dump(-1, ' ', false, json::error_handler_t::replace));
  read_json_rows(file, [&](const std::string& row, const std::string& place) {
    const json item = parse_json(row, place);
    if (!item.is_object()) throw Error(place + ": not a JSON object");
    const TaskKind kind = kind_of(item);
    if (task.items.empty()) task.kind = kind;
    if (kind != task.kind) {
      throw Error(
          fmt::format("{}: {} and {} in one file", place, kind_name(kind), kind_name(task.kind)));
    }
    TaskItem read = read_item(item, kind, place);
    if (kind != TaskKind::pairs) {
      for (std::string& context : read.contexts) context = before + context + behind;
    }
    read.place = place;
    read.line = item.dump();
    if (!task.items.empty() && read.phenomenon.empty() != task.items[0].phenomenon.empty()) {
      throw Error(place + ": some items have a \"phenomenon\", some have none");
    }
    task.items.push_back(std::move(read));
  });
  if (task.items.empty()) throw Error(file.string() + " holds no items");
  return task;
}

std::vector<ChoiceRow> encode_task(const Task& task, const Tokenizer& tokenizer) {
  std::vector<ChoiceRow> rows;
  for (const TaskItem& item : task.items) {
    for (size_t request = 0; request < item.num_requests(); ++request) {
      rows.push_back(encode_choice(item, request, tokenizer));
    }
  }
  return rows;
}

std::vector<ChoiceRow> rows_for_model(std::vector<ChoiceRow> rows, int64_t seq_length) {
  for (ChoiceRow& row : rows) {
    const int64_t cut = std::max<int64_t>(0, std::ssize(row.tokens) - (seq_length + 1));
    row.tokens.erase(row.tokens.begin(), row.tokens.begin() + cut);
    row.given = std::max<int64_t>(1, row.given - cut);
  }
  return rows;
}

std::vector<ChoiceRow> rows_for_router(std::vector<ChoiceRow> rows, int64_t prefix_tokens) {
  for (ChoiceRow& row : rows) {
    row.tokens.resize(std::min(row.tokens.size(), static_cast<size_t>(prefix_tokens)));
    row.given = 1;
  }
  return rows;
}

}  // namespace smalltalk
