// smalltalk: asynchronous mixtures of language models, as a suite of batch jobs.
#include <cstdio>
#include <cstdlib>
#include <iostream>

#include "jobs.hpp"
#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "version.hpp"

namespace smalltalk {
namespace {

// Before MPI is up, the launcher's environment tells which process speaks for all.
bool speaks_for_all() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"}) {
    if (const char* rank = std::getenv(name)) return std::string(rank) == "0";
  }
  return true;
}

int run_command_line(int argc, char** argv) {
  CLI::App app(
      "Trains a mixture of language models that do not talk: tiny routers learn by balanced EM\n"
      "which expert likes a sequence's beginning best, then every expert trains alone.\n\n"
      "  mpirun -n 4 smalltalk launch jobs/tiny.toml --out runs/tiny\n");
  app.require_subcommand(0, 1);
  bool experiment_keys = false;
  app.set_version_flag("--version", version(), "Print which smalltalk this is");
  app.add_flag("--help-experiment", experiment_keys, "Print all keys of an experiment file");
  JobRun run;
  add_launch_job(app, run);
  add_prepare_job(app, run);
  add_order_job(app, run);
  add_route_job(app, run);
  add_shard_job(app, run);
  add_assign_job(app, run);
  add_explain_job(app, run);
  add_train_job(app, run);
  add_evaluate_job(app, run);
  add_generate_job(app, run);
  add_compare_job(app, run);
  add_sweep_job(app, run);
  add_tasks_job(app, run);
  add_export_job(app, run);
  add_report_job(app, run);
  add_inspect_job(app, run);
  add_status_job(app, run);
  add_diff_job(app, run);
  add_bench_job(app, run);
  add_bench_assignment_job(app, run);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return speaks_for_all() ? app.exit(error) : kExitDone;
    if (speaks_for_all()) {
      app.exit(error);
      const bool is_extra = dynamic_cast<const CLI::ExtrasError*>(&error) != nullptr;
      if (is_extra && std::string_view(error.what()).find('=') != std::string_view::npos) {
        std::cerr << "Each key has a --set of its own: --set seed=1 --set data.seq_length=128\n";
      }
    }
    return kExitUsage;
  }
  if (experiment_keys) {
    std::cout << experiment_help();
    return kExitDone;
  }
  if (!run) {
    if (speaks_for_all()) std::cout << app.help();
    return kExitUsage;
  }
  return run();
}

}  // namespace
}  // namespace smalltalk

int main(int argc, char** argv) {
  const int exit_code = smalltalk::run_command_line(argc, argv);
  // Without the destructors of LibTorch's global tables, which take longer than many a job.
  std::cout.flush();
  std::fflush(nullptr);
  std::quick_exit(exit_code);
}
