// Requests to end early with everything saved: a signal, a file in the run folder, the end of the
// time that the batch system gives, or another rank that was asked. Long loops poll; who finds that
// it was asked saves what it has and throws Stopped, which run_session() turns into exit code 75.
// Ranks that work together agree first, by run_together(), so that nobody is left in a collective.
#pragma once

#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// From now on these signals ask this process to stop instead of ending it.
void catch_stop_signals(std::span<const int> signals);
// "USR2,TERM" or "SIGUSR2" as numbers; "none" and "" as none. Error: another word.
std::vector<int> parse_signals(const std::string& names);

struct StopSources {
  // A person makes this file. One that is there already was meant for an earlier start.
  std::filesystem::path file;
  // By this file the ranks of one start tell each other; the first that is asked makes it.
  std::filesystem::path bell;
  double deadline = std::numeric_limits<double>::infinity();  // on the clock of now_seconds()
};
void watch_for_stop(StopSources sources);

// Whether this process is to stop. Looks at files once in two seconds at most; once true, always
// true. Polling also tells the watchdog (comm/session.hpp) that the process makes progress.
bool stop_requested();
// "SIGUSR2", "RUN/stop", "the end of the time limit"; empty if nobody asked.
std::string stop_reason();
// Seconds since stop_requested() was last asked, or since the process began.
double seconds_since_poll();

// Everything is saved, and the job is to be started again.
class Stopped : public std::exception {
 public:
  const char* what() const noexcept override { return "stopped on request"; }
};

// Throws Stopped if this process is to stop. For places where nothing is left to save.
void stop_if_asked();

// Calls `mine`, this rank's part of common work. If that throws Stopped on any rank, this does so
// on all of them, once all have come here. Collective.
void run_together(const HostCollectives& ranks, const std::function<void()>& mine);

// Seconds left of the Slurm job that this process belongs to, as squeue tells; nothing outside of
// one, without a limit, or if squeue does not answer within seconds.
std::optional<double> slurm_seconds_left();
// "1-02:03:04", "02:03:04", "03:04", "04" in seconds; nothing for "UNLIMITED" and all else.
std::optional<double> parse_slurm_duration(std::string_view text);

}  // namespace smalltalk
