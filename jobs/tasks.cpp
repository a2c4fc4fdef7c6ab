// tasks: accuracies and perplexities of a run's models on downstream tasks.
#include "smalltalk/mixture/evaluation/tasks.hpp"

#include <fmt/format.h>

#include <iostream>

#include "jobs.hpp"
#include "run_job.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/write_lock.hpp"
#include "smalltalk/mixture/report/report.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace {

struct TasksJob {
  RunOptions run;
  std::vector<std::string> files;
  std::string prompt = "plain";
  FewShot few_shot;
  std::vector<std::string> example_files;
  WorkPart part;
};

// Pairs of sentences have no context, and so no examples, as in lm_eval's BLiMP.
std::vector<Task> read_tasks(const TasksJob& job) {
  std::vector<Task> tasks;
  std::vector<size_t> with_examples;
  for (const std::string& file : job.files) {
    tasks.push_back(read_task(file, job.prompt));
    if (tasks.back().kind != TaskKind::pairs) with_examples.push_back(tasks.size() - 1);
  }
  if (job.few_shot.examples == 0) {
    if (!job.example_files.empty()) throw Error("--fewshot-file has no effect with --fewshot 0");
    return tasks;
  }
  const std::vector<std::string>& files = job.example_files;
  if (!files.empty() && files.size() != with_examples.size()) {
    throw Error(fmt::format("{} files of examples for {} tasks that take examples", files.size(),
                            with_examples.size()));
  }
  for (size_t i = 0; i < with_examples.size(); ++i) {
    Task& task = tasks[with_examples[i]];
    add_examples(task, files.empty() ? Task(task) : read_task(files[i], job.prompt), job.few_shot);
  }
  return tasks;
}

void score_tasks(const TasksJob& job, const Run& run, const std::string& start) {
  require_part(job.part);
  std::vector<Task> tasks = read_tasks(job);
  std::vector<TrainUnit> units = units_of(run);
  std::erase_if(units,
                [](const TrainUnit& unit) { return unit.kind->chosen_by == ChosenBy::turn; });
  require_trained(run.layout, units);
  const TaskEvaluation evaluation(run, units, std::move(tasks));
  std::vector<Work> cells;
  for (size_t cell = 0; cell < evaluation.num_cells(); ++cell) {
    cells.push_back({evaluation.name(cell), [&, cell] { return evaluation.complete(cell); },
                     [&, cell] { evaluation.compute(cell); }});
  }
  if (!work_off(run.layout, start, cells, job.part)) return;
  // Calls of other tasks, which add theirs, may come to their end at the same time.
  std::optional<WriteLock> lock(std::in_place, run.layout.lock("tasks"),
                                run.layout.task_results().string(), 600);
  const TaskReport report = evaluation.report();
  write_text_atomically(run.layout.task_results(), report.json);
  lock.reset();
  write_report(run.layout.root);
  std::cout << report.table << std::flush;
}

}  // namespace

void add_tasks_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("tasks", "Score a run's models on downstream tasks");
  auto job = std::make_shared<TasksJob>();
  add_run_options(*sub, job->run);
  sub->add_option("--task", job->files, "Files of JSON lines, an item a line (see below)")
      ->required()
      ->check(CLI::ExistingFile);
  sub->add_option("--prompt", job->prompt,
                  "How a context is asked: plain (as it is) or question (Question: ... Answer:)")
      ->check(CLI::IsMember(prompt_names()))
      ->capture_default_str();
  auto* examples = sub->add_option("--fewshot", job->few_shot.examples,
                                   "Examples before each item, with their answers (see below)")
                       ->check(CLI::NonNegativeNumber)
                       ->capture_default_str();
  sub->add_option("--fewshot-file", job->example_files,
                  "Files of items to draw examples from, one for each task, but none for pairs; "
                  "without it each task's own")
      ->check(CLI::ExistingFile)
      ->needs(examples);
  sub->add_option("--fewshot-seed", job->few_shot.seed, "Which examples are drawn")
      ->needs(examples)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_part_options(*sub, job->part, "table");
  sub->footer(
      "Four kinds of tasks, one a file:\n"
      "  {\"context\": \"2 + 2 is\", \"choices\": [\"four\", \"five\"], \"answer\": 0}\n"
      "  {\"context\": [\"The cup\", \"The sky\"], \"choices\": [\"is full.\"], \"answer\": 0}\n"
      "  {\"context\": \"Once upon a\", \"target\": \"time\"}\n"
      "  {\"good\": \"she sings\", \"bad\": \"she sing\", \"phenomenon\": \"agreement\"}\n"
      "An answer is the choice that the model finds likeliest behind the context (acc), or\n"
      "likeliest per character (acc_norm); the context behind which the choice is likeliest (in\n"
      "acc_norm, per character of the context); of a pair, the likelier sentence. A target is\n"
      "right (acc) if each of its tokens is the likeliest one; its perplexity is exp of the\n"
      "mean loss of a whole target. Requests and figures are those of lm-evaluation-harness.\n"
      "With --fewshot K, each item has K others with their answers and empty lines before its\n"
      "context. They are drawn as lm_eval draws them with the seed of the same name; an item of\n"
      "the file that they come from is not its own example. Pairs have none.\n"
      "The mixture's routers choose one expert an item, by the beginnings of all that is asked\n"
      "about it, examples included. A Lory model answers twice: merged for each segment, as it is\n"
      "trained, and as lory_by_prompt, merged once by what stands before a choice, as `generate`\n"
      "does. Prints a table and writes RUN/tasks.json, for each model in\n"
      "the layout of lm_eval, beside those of other tasks by earlier calls, and renews the "
      "report.\n"
      "A task has one result there: that of its last call. Any number of ranks share the work\n"
      "(model x task); what was scored before is kept in RUN/tasks.\n"
      "  mpirun -n 4 smalltalk tasks jobs/tiny.toml --out RUN --task copa.jsonl blimp/items.jsonl");
  sub->callback([&run, job] {
    run = [job] {
      return run_stage(job->run, Phase::tasks, true,
                       [&](OpenedRun& opened) { score_tasks(*job, opened.run, opened.start); });
    };
  });
}

}  // namespace smalltalk
