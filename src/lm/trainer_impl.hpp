// The inside of a Trainer, shared by the loop (trainer.cpp) and checkpoints (checkpoint.cpp).
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "batch_loader.hpp"
#include "outlier_window.hpp"
#include "sharded_adamw.hpp"
#include "smalltalk/core/trace.hpp"
#include "smalltalk/lm/trainer.hpp"
#include "training_log.hpp"
#include "transformer_impl.hpp"

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
  };
  TrainSummary run(const RowSource& rows, int64_t last_step);
  // The parts of run(), which a stack of models calls for each of them.
  void begin_run(const RowSource& rows);
  void begin_step(Loop& loop);
  std::span<const int64_t> next_tokens(Loop& loop);
  void end_step(Loop& loop, double loss);  // the mean over this rank's targets

  // Accumulates this rank's gradients of one step; returns the mean loss over its targets.
  double accumulate(Loop& loop);
  // Whether the update of this step is to be made. Reports outliers. The same on all ranks.
  bool accept(const ShardedAdamW::StepResult& result);
  void log_step(int64_t row_tokens, double gradient_norm, double lr);
  PhaseSeconds phases();  // so far
  // trace.json of all ranks of the group.
  void write_trace() const;
  void save(const std::filesystem::path& file);
  void load(const std::filesystem::path& file);

  Transformer::Impl& model;
  Engine* engine;  // that computes: the model's, or that of the stack which is being trained
  TrainConfig config;
  TrainOptions options;
  ShardedAdamW optimizer;
  TrainingLog log;
  int64_t micro_batch = 0;  // rows
  int64_t step = 0;         // steps done
  int64_t num_targets = 0;  // trained on, over the group
  // Of the steps so far; saved, so that a resumed run finds the outliers of the unbroken one.
  OutlierWindow losses, gradient_norms;
  int64_t skipped_steps = 0;  // whose updates were left out

  // Since the last logged step. The first two are saved, so that a resumed run logs what the
  // unbroken one logs.
  std::vector<double> interval_losses;  // [ranks], sums over steps
  int64_t interval_steps = 0;
  int64_t interval_timed_steps = 0;  // of this process
  double interval_start = 0;
  PhaseSeconds interval_phases;  // those so far when the interval began
  double data_seconds = 0;       // so far
  double last_loss = 0;
};

}  // namespace smalltalk
