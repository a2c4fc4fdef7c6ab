// The jobs of the suite, one file each. add_X_job() adds the subcommand and its options to the
// command line; its callback sets `run` to the work, which returns the exit code.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

namespace smalltalk {

using JobRun = std::function<int()>;

// The work of a job of one process, without MPI: calls `body`, prints its error, returns the exit
// code.
int run_alone(const std::string& job, const std::function<void()>& body);

void add_diff_job(CLI::App& app, JobRun& run);
void add_prepare_job(CLI::App& app, JobRun& run);
void add_order_job(CLI::App& app, JobRun& run);
void add_route_job(CLI::App& app, JobRun& run);
void add_shard_job(CLI::App& app, JobRun& run);
void add_assign_job(CLI::App& app, JobRun& run);
void add_explain_job(CLI::App& app, JobRun& run);
void add_train_job(CLI::App& app, JobRun& run);
void add_launch_job(CLI::App& app, JobRun& run);
void add_evaluate_job(CLI::App& app, JobRun& run);
void add_generate_job(CLI::App& app, JobRun& run);
void add_compare_job(CLI::App& app, JobRun& run);
void add_sweep_job(CLI::App& app, JobRun& run);
void add_tasks_job(CLI::App& app, JobRun& run);
void add_export_job(CLI::App& app, JobRun& run);
void add_report_job(CLI::App& app, JobRun& run);
void add_inspect_job(CLI::App& app, JobRun& run);
void add_status_job(CLI::App& app, JobRun& run);
void add_bench_job(CLI::App& app, JobRun& run);
void add_bench_assignment_job(CLI::App& app, JobRun& run);

}  // namespace smalltalk
