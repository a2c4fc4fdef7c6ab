// compare: what the mixture of a run is worth under other ways to choose among its experts.
#include <fmt/format.h>

#include <iostream>

#include "jobs.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/mixture/evaluation/comparison.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

void add_compare_job(CLI::App& app, JobRun& run) {
  struct CompareJob {
    RunOptions run;
    CompareOptions options;
    std::vector<std::string> text;
    WorkPart part;
    bool markdown = false;
  };
  auto* job = app.add_subcommand(
      "compare", "Compare ways to choose among the experts of a run: one table with intervals");
  auto settings = std::make_shared<CompareJob>();
  CompareOptions& options = settings->options;
  add_run_options(*job, settings->run);
  job->add_option("--data", options.split, "validation, test, or a name for the text of --text")
      ->capture_default_str();
  job->add_option(
      "--text", settings->text,
      "Files, folders or globs of other text to compare on (as data.test); their tokens "
      "are kept under the name of --data");
  job->add_option("--reference", options.reference,
                  "Differences are from this model: dense (the default), mixture, ...");
  job->add_option("--prefixes", options.prefixes,
                  "Route on so many tokens, as in 8,16,32; default: 8, 16, 32, ... and the "
                  "routers' own")
      ->delimiter(',');
  job->add_option("--steps", options.steps,
                  "Compare checkpoints of these steps, too, as in 500,1000: those that "
                  "expert.keep_every has kept")
      ->delimiter(',');
  job->add_option("--temperatures", options.temperatures,
                  "Of the routers' posterior, by which ensembles are weighted")
      ->delimiter(',')
      ->capture_default_str();
  job->add_option("--resamples", options.resamples, "Of the paired bootstrap over documents")
      ->capture_default_str();
  add_part_options(*job, settings->part, "table");
  job->add_flag("--markdown", settings->markdown, "Print the table as Markdown");
  job->footer(
      "Writes RUN/comparison-DATA.json, prints the table and renews the report. Any number of "
      "ranks\n"
      "score what evaluate has not scored yet; after that it is arithmetic, and takes seconds.\n"
      "  mpirun -n 4 smalltalk compare jobs/tiny.toml --out RUN --prefixes 8,16,32\n"
      "  mpirun -n 4 smalltalk compare jobs/tiny.toml --out RUN --data news --text news.jsonl.gz");
  job->callback([&run, settings] {
    run = [settings] {
      return run_stage(settings->run, Phase::compare, true, [&](OpenedRun& opened) {
        const Run& trained = opened.run;
        require_part(settings->part);
        const std::string& data = settings->options.split;
        if (!settings->text.empty()) {
          const HostCollectives ranks = host_collectives(opened.world);
          set_ledger_phase(Phase::prepare);
          const auto lock = lock_stages(trained, ranks, 3600);  // others may begin as we do
          prepare_text(trained, data, settings->text, ranks);
          set_ledger_phase(Phase::compare);
        }
        require_split(trained, data);
        const std::vector<TrainUnit> units = units_of(trained);
        require_trained(trained.layout, units);
        const auto cells = compare_cells(trained.experiment, units, settings->options);
        if (!compute_cells(trained, opened.start, cells, settings->part)) return;
        const Comparison comparison = write_comparison(trained, units, settings->options);
        std::cout << fmt::format("{}: {} sequences of {} documents; intervals of 95 %\n\n{}",
                                 comparison.split, comparison.num_sequences,
                                 comparison.num_documents,
                                 comparison_table(comparison, settings->markdown))
                  << std::flush;
      });
    };
  });
}

}  // namespace smalltalk
