#include "options.hpp"

#include <fmt/format.h>

#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {

void add_stop_options(CLI::App& job, StopOptions& options) {
  job.add_option("--signals", options.signals,
                 "Signals at which the job saves its work and ends with exit code 75 (start it "
                 "again), joined by commas; none: they do what they always do")
      ->check([](const std::string& names) -> std::string {
        try {
          parse_signals(names);
        } catch (const Error& error) {
          return error.what();
        }
        return {};
      })
      ->capture_default_str();
  job.add_option("--walltime-margin", options.walltime_margin,
                 "Do the same so many seconds before the time limit of its Slurm job")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  job.add_option("--hang-timeout", options.hang_timeout,
                 "End the job if a rank has made no progress for so many seconds; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

void add_run_options(CLI::App& job, RunOptions& options) {
  job.add_option("experiment", options.experiment, "Experiment file (TOML)")->required();
  job.add_option("--out", options.out, "Run folder; the same folder again continues the run")
      ->required();
  job.add_option("--set", options.overrides,
                 "Override a key of the experiment: section.key=value (repeatable)")
      ->allow_extra_args(false);
  add_stop_options(job, options.stop);
}

void add_part_options(CLI::App& job, WorkPart& part, const std::string& rest) {
  job.add_option("--part", part.part,
                 "Do only the pieces part, part + parts, ... and no " + rest +
                     ": for one element of a Slurm array")
      ->check(CLI::NonNegativeNumber);
  job.add_option("--parts", part.parts, "Into how many parts the work is divided")
      ->check(CLI::PositiveNumber);
}

void require_part(const WorkPart& part) {
  if (part.part < part.parts) return;
  throw Error(fmt::format("--part {} of --parts {}: parts count from 0", part.part, part.parts));
}

void add_assignment_options(CLI::App& job, std::string& method, double& epsilon,
                            std::vector<double>& shares) {
  job.add_option("--method", method,
                 "Who chooses first: greedy (the best score, as in the paper), margin (the largest "
                 "lead of best over second best), or optimal (largest total score)")
      ->check(CLI::IsMember({"greedy", "margin", "optimal"}));
  job.add_option("--epsilon", epsilon,
                 "optimal: nats per sequence by which it may miss the optimum")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  job.add_option("--shares", shares, "Relative sizes of the shards, one per expert: 2,1,1")
      ->delimiter(',');
}

void require_acting(AssignmentMethod method, double epsilon, const std::vector<double>& shares) {
  if (method != AssignmentMethod::optimal && epsilon != AssignOptions().epsilon) {
    throw Error(fmt::format("--epsilon has no effect on the method {}, only on optimal",
                            to_string(method)));
  }
  if (method == AssignmentMethod::argmax && !shares.empty()) {
    throw Error("--shares has no effect on argmax, which is not balanced");
  }
}

}  // namespace smalltalk
