// What one model does in a training run, step by step.
#pragma once

#include <optional>
#include <span>

#include "lm/train/batch_loader.hpp"
#include "lm/train/trainer_impl.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {

class Trainer::Impl::Run {
 public:
  // From the trainer's step up to but without `last_step`. `engine` computes the gradients, whether
  // of this model alone or of others, too. Trainer, engine and rows must outlive the run.
  Run(Impl& trainer, Engine& engine, const RowSource& rows, int64_t last_step);

  void begin_step();
  // This rank's next micro-batch.
  std::span<const int64_t> next_tokens();
  // All gradients and losses of the step over this rank's `targets`, padding among them, have been
  // added up. Updates the weights, logs and saves what is due. Returns whether some rank of the
  // group was asked to stop and steps are left: the same on all of them.
  bool end_step(int64_t targets);

 private:
  using StepResult = ShardedAdamW::StepResult;
  // What all steps came to but those that may stay pending.
  void take_in_steps(int64_t left);
  // What a step came to, counted from 1.
  void take_in(const StepResult& result, int64_t step);
  // Whether its update is to be made. Reports outliers. The same on all ranks.
  bool accept(const StepResult& result, int64_t step);
  // Error, unless such steps are to be left out.
  void report_nonfinite(const StepResult& result, int64_t step);
  void add_loss(const StepResult& result);
  void log_step(double lr);
  PhaseSeconds phases();  // so far
  // trace.json of all ranks of the group.
  void write_trace();

  Impl& trainer_;
  TrainingProgress& progress_;
  Engine& engine_;
  const RowSource& rows_;
  int64_t last_step_;
  Schedule schedule_;
  DeviceConfig::Steps traced_;
  bool tracing_ = false;
  std::optional<TraceSpan> span_;  // of the step
  double data_seconds_ = 0;        // waited for tokens so far
  int64_t padding_ = 0;            // targets of this rank's step so far that do not count
  double gradient_norm_ = 0;       // of the newest step that was taken in
  bool stop_ = false;              // some rank was asked to

  // Of this process since the last logged step.
  double interval_start_;
  int64_t interval_steps_ = 0;
  PhaseSeconds interval_phases_;  // those so far when the interval began

  BatchLoader loader_;  // reads from its construction on
};

}  // namespace smalltalk
