// Where a run stands: its stages by their files and by the queue of the batch system, its models by
// their logs. Computes nothing, and lets nothing that it cannot read stop it.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/stages.hpp"
#include "smalltalk/mixture/run/training_progress.hpp"

namespace smalltalk {

// A job of a batch system, or an element of an array of jobs, that makes a stage.
struct QueuedJob {
  std::string id;
  bool running = false;
  std::string reason;  // why it waits
  std::string stage;   // Stage::job, or "launch" for all of them
  int64_t index = 0;
  int64_t parts = 1;  // of the evaluation
};

// What slurm/submit calls the run in the queue; empty if the run was never submitted.
std::string slurm_run_id(const RunLayout& layout);

// begun: something is there, and no job that is known of works on it.
enum class StageState { done, running, waiting, failed, begun, missing };
inline constexpr std::array kStageStates = {StageState::done,    StageState::running,
                                            StageState::waiting, StageState::failed,
                                            StageState::begun,   StageState::missing};
std::string to_string(StageState state);

struct StageStatus {
  Stage stage;
  StageState state = StageState::missing;
  std::optional<QueuedJob> job;  // that works on it, or will
};

struct RunStatus {
  std::vector<StageStatus> stages;              // in order; at last "launch", which is all of them
  std::map<std::string, UnitProgress> models;   // by unit
  std::map<std::string, std::string> progress;  // in words, by Stage::job
};

// The units of a run of which not all need be there. Opens the tokens if they are: how long the
// dense models train depends on them, and without them these have 0 steps.
std::vector<TrainUnit> units_as_known(Run& run);

// `queue` holds the run's own jobs. While an evaluation is queued, it is in as many parts as that
// job says, else in `evaluation_parts`.
RunStatus run_status(Run run, const std::vector<QueuedJob>& queue, int64_t evaluation_parts);

// A hash that changes when a stage advances: of the names and sizes of what it can go on from. Its
// logs do not count, nor what is being written, nor times.
std::string hash_of_progress(const RunLayout& layout, const Stage& stage);

}  // namespace smalltalk
