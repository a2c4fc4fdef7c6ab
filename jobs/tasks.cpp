// tasks: accuracies of a run's models on downstream tasks.
#include "smalltalk/mixture/evaluation/tasks.hpp"

#include <iostream>

#include "jobs.hpp"
#include "run_job.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/mixture/report/report.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace {

struct TasksJob {
  RunOptions run;
  std::vector<std::string> files;
  std::string prompt = "plain";
  WorkPart part;
};

void score_tasks(const TasksJob& job, const Run& run, const std::string& start) {
  require_part(job.part);
  std::vector<Task> tasks;
  for (const std::string& file : job.files) tasks.push_back(read_task(file, job.prompt));
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
  const TaskReport report = evaluation.report();
  write_text_atomically(run.layout.task_results(), report.json);
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
  add_part_options(*sub, job->part, "table");
  sub->footer(
      "Two kinds of tasks:\n"
      "  {\"context\": \"2 + 2 is\", \"choices\": [\"four\", \"five\"], \"answer\": 0}\n"
      "  {\"good\": \"she sings\", \"bad\": \"she sing\", \"phenomenon\": \"agreement\"}\n"
      "An answer is the choice that the model finds likeliest behind the context (acc), or\n"
      "likeliest per character (acc_norm); of a pair, the likelier sentence. Requests and\n"
      "figures are those of lm-evaluation-harness. The mixture's routers choose one expert an\n"
      "item, by the beginnings of all its choices. Prints a table and writes RUN/tasks.json, for\n"
      "each model in the layout of lm_eval, and renews the report. Any number of ranks share the\n"
      "work (model x task); what was scored before is kept in RUN/tasks.\n"
      "  mpirun -n 4 smalltalk tasks jobs/tiny.toml --out RUN --task copa.jsonl blimp/items.jsonl");
  sub->callback([&run, job] {
    run = [job] {
      return run_stage(job->run, Phase::tasks, true,
                       [&](OpenedRun& opened) { score_tasks(*job, opened.run, opened.start); });
    };
  });
}

}  // namespace smalltalk
