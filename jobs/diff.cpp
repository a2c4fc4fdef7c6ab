// diff: what an experiment would change in a run folder.
#include <iostream>
#include <nlohmann/json.hpp>

#include "jobs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/mixture/run/changes.hpp"

namespace smalltalk {

namespace {

struct DiffJob {
  std::string run, experiment;
  std::vector<std::string> overrides;
  bool json = false;
};

nlohmann::ordered_json to_json(const Changes& changes) {
  auto keys = nlohmann::ordered_json::array(), trained_on = keys;
  for (const auto& [key, spoils] : changes.keys) {
    keys.push_back(
        {{"key", key.key}, {"there", key.there}, {"here", key.here}, {"spoils", spoils}});
  }
  for (const auto& [unit, from, to] : changes.trained_on) {
    trained_on.push_back({{"model", unit}, {"from", from}, {"to", to}});
  }
  return {{"keys", keys}, {"trained_on", trained_on}};
}

}  // namespace

void add_diff_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("diff", "What an experiment would change in a run folder");
  auto job = std::make_shared<DiffJob>();
  sub->add_option("run", job->run, "Run folder")->required()->check(CLI::ExistingDirectory);
  sub->add_option("experiment", job->experiment, "Experiment file; default: the folder's own");
  sub->add_option("--set", job->overrides, "Override a key of the experiment (repeatable)")
      ->allow_extra_args(false);
  sub->add_flag("--json", job->json, "The table as JSON");
  sub->footer(
      "Prints each key that differs, its value there and here, and what that is there was made by\n"
      "it; and which models are trained on, from which step. Ends with 0 if `launch` would go on\n"
      "with the folder, with 1 if something would be spoilt.\n"
      "Text is not told by its paths: launch compares what it holds.\n"
      "  smalltalk diff runs/tiny jobs/tiny.toml --set expert.lr=1e-3");
  sub->callback([&run, job] {
    run = [job] {
      bool spoilt = false;
      const int code = run_alone("diff", [&] {
        const std::string own = RunLayout{job->run}.experiment().string();
        const Run asked =
            load_run(job->experiment.empty() ? own : job->experiment, job->overrides, job->run);
        const Changes changes = changes_of(asked);
        if (job->json) {
          std::cout << to_json(changes).dump(2) << "\n";
        } else {
          std::cout << (changes.none() ? "no key differs\n" : describe(changes));
        }
        spoilt = changes.spoil();
      });
      return code == kExitDone && spoilt ? kExitFailure : code;
    };
  });
}

}  // namespace smalltalk
