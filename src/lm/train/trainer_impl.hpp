// The inside of a Trainer, shared by the loop (trainer.cpp) and checkpoints (checkpoint.cpp).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "lm/model/transformer_impl.hpp"
#include "lm/train/batch_loader.hpp"
#include "lm/train/checkpoint_folder.hpp"
#include "lm/train/outlier_window.hpp"
#include "lm/train/sharded_adamw.hpp"
#include "lm/train/training_log.hpp"
#include "smalltalk/core/system/trace.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {

struct Trainer::Impl {
  Impl(Transformer& transformer, const TrainConfig& train, const TrainOptions& train_options);

  // What a run needs from its first step to its last.
  struct Loop {
    Loop(Impl& trainer, const RowSource& rows, int64_t last);
    BatchLoader loader;
    int64_t row_tokens, last_step;
    Schedule schedule;
    DeviceConfig::Steps traced;
    bool tracing = false;
    std::optional<TraceSpan> span;  // of the step
    std::function<uint64_t(int64_t row)> sequence_of;
  };
  TrainSummary run(const RowSource& rows, int64_t last_step);
  // The parts of run(), which a stack of models calls for each of them.
  void begin_run(const RowSource& rows);
  void begin_step(Loop& loop);
  std::span<const int64_t> next_tokens(Loop& loop);
  // `loss`: the mean over this rank's targets. Whether the group was asked to stop and has steps
  // left; the same on all ranks.
  bool end_step(Loop& loop, double loss);

  // Accumulates this rank's gradients of one step; returns the mean loss over its targets.
  double accumulate(Loop& loop);
  // Whether the update of this step is to be made. Reports outliers. The same on all ranks.
  bool accept(const ShardedAdamW::StepResult& result);
  // A step whose loss or gradient is not finite: Error, or left out if the config says so.
  void report_nonfinite(const Loop& loop, const ShardedAdamW::StepResult& result);
  void log_step(int64_t row_tokens, double gradient_norm, double lr);
  PhaseSeconds phases();  // so far
  // trace.json of all ranks of the group.
  void write_trace() const;

  // All that a checkpoint holds, copied; on rank 0. Collective.
  struct Snapshot {
    at::Tensor parameters, first, second;  // in host memory
    std::map<std::string, std::string> metadata;
    void write(const ParameterLayout& layout, const std::filesystem::path& file) const;
  };
  Snapshot snapshot();
  void save(const std::filesystem::path& file);
  void checkpoint();          // of this step, behind the training; collective
  void flush_checkpoint();    // waits for it; collective
  [[noreturn]] void leave();  // saved and flushed: throws Stopped
  void resume();
  void take_up(const SafetensorsFile& saved, const std::filesystem::path& file);

  Transformer::Impl& model;
  Engine* engine;  // that computes: the model's, or that of the stack which is being trained
  TrainConfig config;
  TrainOptions options;
  ShardedAdamW optimizer;
  TrainingLog log;
  CheckpointFolder checkpoints;
  int64_t saved_step = -1;  // of the newest checkpoint
  int64_t micro_batch = 0;  // rows
  int64_t step = 0;         // steps done
  int64_t num_targets = 0;  // trained on, over the group
  // Of the steps so far; saved, so that a resumed run finds the outliers of the unbroken one.
  OutlierWindow losses, gradient_norms;
  int64_t skipped_steps = 0;  // whose updates were left out
  int nonfinite_in_a_row = 0;

  // Since the last logged step. The first two are saved, so that a resumed run logs what the
  // unbroken one logs.
  double interval_loss = 0;              // sum over steps of the mean over ranks
  double interval_max_loss = -INFINITY;  // of any rank's part of any step
  int64_t interval_steps = 0;
  int64_t interval_timed_steps = 0;  // of this process
  double interval_start = 0;
  PhaseSeconds interval_phases;  // those so far when the interval began
  double data_seconds = 0;       // so far
  double last_loss = 0;
};

}  // namespace smalltalk
