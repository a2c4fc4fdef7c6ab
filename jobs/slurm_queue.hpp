// The jobs that slurm/submit put into Slurm's queue.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run_status.hpp"

namespace smalltalk {

// The lines of squeue; nothing if there is none, or it does not answer within seconds.
std::optional<std::string> ask_squeue();

// The jobs of the run with this id (slurm_run_id()) among the lines of
// squeue --noheader --array --format='%i|%K|%T|%r|%k'. Lines of all else are passed over.
std::vector<QueuedJob> parse_queue(const std::string& text, const std::string& run_id);

}  // namespace smalltalk
