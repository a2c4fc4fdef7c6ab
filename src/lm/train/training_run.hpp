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
  // All gradients of the step have been added up; `loss` is the mean over this rank's `targets`,
  // padding among them. Updates the weights, logs and saves what is due. Returns whether some rank
  // of the group was asked to stop and steps are left: the same on all of them.
  bool end_step(double loss, int64_t targets);

 private:
  // Whether the update of this step is to be made. Reports outliers. The same on all ranks.
  bool accept(const ShardedAdamW::StepResult& result);
  // Error, unless such steps are to be left out.
  void report_nonfinite(const ShardedAdamW::StepResult& result);
  void add_loss(const ShardedAdamW::StepResult& result);
  void log_step(double gradient_norm, double lr);
  PhaseSeconds phases();  // so far
  // trace.json of all ranks of the group.
  void write_trace() const;

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

  // Of this process since the last logged step.
  double interval_start_;
  int64_t interval_steps_ = 0;
  PhaseSeconds interval_phases_;  // those so far when the interval began

  BatchLoader loader_;  // reads from its construction on
};

}  // namespace smalltalk
