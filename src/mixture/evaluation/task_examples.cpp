// Few-shot examples, drawn and written as lm-evaluation-harness does it.
#include <fmt/format.h>

#include <algorithm>
#include <unordered_set>

#include "mixture/evaluation/python_random.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/mixture/evaluation/tasks.hpp"

namespace smalltalk {

namespace {

// With the answer behind its context. A target brings its own space, so that two of them are there:
// lm_eval delimits it like any answer.
std::string example_text(const TaskItem& item, TaskKind kind) {
  const auto answer = static_cast<size_t>(item.answer);
  return item.context(answer) + (kind == TaskKind::target ? "  " : " ") + item.choice(answer) +
         "\n\n";
}

// One more than needed, so that the item may be among them. Lines like the item's may take more
// than that; then they are drawn of the others.
std::vector<size_t> draw_others(PythonRandom& random, const Task& pool, const TaskItem& item,
                                size_t count) {
  const auto is_item = [&](size_t i) { return pool.items[i].line == item.line; };
  std::vector<size_t> drawn = random.sample(pool.items.size(), count + 1);
  std::erase_if(drawn, is_item);
  if (drawn.size() < count) {
    std::vector<size_t> others;
    for (size_t i = 0; i < pool.items.size(); ++i) {
      if (!is_item(i)) others.push_back(i);
    }
    if (others.size() < count) {
      throw Error(fmt::format("{}: {} other items are too few for {} examples", item.place,
                              others.size(), count));
    }
    drawn.clear();
    for (const size_t place : random.sample(others.size(), count)) drawn.push_back(others[place]);
  }
  drawn.resize(count);
  return drawn;
}

}  // namespace

void add_examples(Task& task, const Task& pool, const FewShot& few_shot) {
  if (task.kind == TaskKind::pairs) {
    throw Error(task.file + ": pairs of sentences take no examples");
  }
  if (pool.kind != task.kind) {
    throw Error(fmt::format("{}: {} cannot be examples for {}, which holds {}", pool.file,
                            kind_name(pool.kind), task.file, kind_name(task.kind)));
  }
  std::unordered_set<std::string_view> lines;
  for (const TaskItem& item : pool.items) lines.insert(item.line);
  const bool own = std::ranges::all_of(
      task.items, [&](const TaskItem& item) { return lines.contains(item.line); });
  const auto count = static_cast<size_t>(few_shot.examples);
  if (pool.items.size() < count + (own ? 1 : 0)) {
    throw Error(fmt::format("{}: {} items are too few for {} examples{}", pool.file,
                            pool.items.size(), count, own ? " besides the item itself" : ""));
  }
  PythonRandom random(few_shot.seed);
  for (TaskItem& item : task.items) {
    const std::vector<size_t> drawn =
        own ? draw_others(random, pool, item, count) : random.sample(pool.items.size(), count);
    item.examples.clear();
    for (const size_t i : drawn) item.examples += example_text(pool.items[i], pool.kind);
  }
  task.num_fewshot = few_shot.examples;
  task.fewshot_seed = few_shot.seed;
}

}  // namespace smalltalk
