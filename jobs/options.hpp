// Options that several jobs share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/mixture/run/work_queue.hpp"

namespace smalltalk {

// When a long job ends before its work does.
struct StopOptions {
  std::string signals = "USR1,USR2,TERM";
  double walltime_margin = 120;  // seconds
  double hang_timeout = 1800;    // seconds; 0: nobody watches
};
void add_stop_options(CLI::App& job, StopOptions& options);

// What every job that works on a run is told.
struct RunOptions {
  std::string experiment;              // file
  std::string out;                     // run folder
  std::vector<std::string> overrides;  // --set section.key=value
  StopOptions stop;
};
void add_run_options(CLI::App& job, RunOptions& options);

// --part and --parts; `rest` is what such a part leaves out.
void add_part_options(CLI::App& job, WorkPart& part, const std::string& rest);
void require_part(const WorkPart& part);  // Error if there is no such part

// --method, --epsilon and --shares of the jobs that assign.
void add_assignment_options(CLI::App& job, std::string& method, double& epsilon,
                            std::vector<double>& shares);
// Error if one of them was set that has no effect with this method.
void require_acting(AssignmentMethod method, double epsilon, const std::vector<double>& shares);

}  // namespace smalltalk
