// report: the page of a run or of a sweep.
#include "smalltalk/mixture/report/report.hpp"

#include <iostream>

#include "jobs.hpp"

namespace smalltalk {

void add_report_job(CLI::App& app, JobRun& run) {
  struct Options {
    std::string run;
    std::string out;
  };
  auto* job = app.add_subcommand("report", "Make one HTML page of a run: result, curves, routing");
  auto options = std::make_shared<Options>();
  job->add_option("run", options->run, "Folder of a run, finished or not, or of a sweep")
      ->required();
  job->add_option("--out", options->out, "The page; default: RUN/report.html");
  job->footer(
      "Reads results.json, routing.jsonl, experiment.toml, tasks.json, the models' metrics.jsonl\n"
      "and some of the test text; or the sweep.json of a sweep. What is not there yet is said on\n"
      "the page. The page is one file: mail it, open it anywhere.\n"
      "  smalltalk report runs/quickstart");
  job->callback([&run, options] {
    run = [options] {
      return run_alone("report", [&] {
        std::cout << write_report(options->run, options->out).string() << "\n";
      });
    };
  });
}

}  // namespace smalltalk
