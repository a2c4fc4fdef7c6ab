#include "lm/train/training_run.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/model/model_folder.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kNamedSequences = 64;  // of a step that went wrong
constexpr int kMaxNonfinite = 10;        // steps in a row that may be left out

// One moment of the past on this rank's clock, the same on all ranks. Ranks leave a barrier
// together but for one that is not given a core just then: the middle of several differences tells
// how far two clocks are apart.
double moment_of_all(const HostCollectives& group) {
  std::array<double, 7> mine{};
  for (double& moment : mine) {
    group.barrier();
    moment = now_seconds();
  }
  const auto bytes = group.all_gather_bytes(std::as_bytes(std::span(mine)));
  auto differences = mine, first = mine;
  std::memcpy(first.data(), bytes.data(), sizeof(first));
  for (size_t i = 0; i < mine.size(); ++i) differences[i] -= first[i];
  std::ranges::nth_element(differences, differences.begin() + differences.size() / 2);
  return first[0] + differences[differences.size() / 2];
}

}  // namespace

Trainer::Impl::Run::Run(Impl& trainer, Engine& engine, const RowSource& rows, int64_t last_step)
    : trainer_(trainer),
      progress_(trainer.progress),
      engine_(engine),
      rows_(rows),
      last_step_(last_step),
      schedule_(trainer.config.schedule()),
      interval_start_(now_seconds()),
      interval_phases_(phases()),
      loader_(rows, trainer.model.config.vocab_size,
              {trainer.config.batch_size, trainer.options.group.rank, trainer.options.group.size,
               trainer.micro_batch, progress_.step, last_step}) {
  if (trainer.options.group.rank == 0) trainer.log.start(progress_.step);
  if (!trainer.options.folder.empty()) traced_ = trainer.model.device.traced_steps();
}

void Trainer::Impl::Run::begin_step() {
  if (progress_.step == traced_.first && traced_.last > progress_.step) {
    start_trace(moment_of_all(trainer_.group()));
    tracing_ = true;
  }
  span_.emplace("step", progress_.step);
}

std::span<const int64_t> Trainer::Impl::Run::next_tokens() {
  const TraceSpan span("wait for tokens", data_seconds_);
  const std::span<const int64_t> tokens = loader_.next();
  const int64_t end = trainer_.model.config.document_end;
  for (size_t i = 1; end >= 0 && i < tokens.size(); ++i) {
    const bool same_row = i % static_cast<size_t>(rows_.row_tokens) != 0;
    if (same_row && tokens[i] == end && tokens[i - 1] == end) ++padding_;
  }
  return tokens;
}

bool Trainer::Impl::Run::end_step(int64_t targets) {
  const TrainConfig& config = trainer_.config;
  ShardedAdamW& optimizer = trainer_.optimizer;
  const double lr = learning_rate(schedule_, progress_.step);
  const int64_t batch_targets = config.batch_size * (rows_.row_tokens - 1);
  const int64_t number = ++progress_.step;
  progress_.targets += batch_targets;
  ++interval_steps_;
  ShardedAdamW::Accept accept_outlier;
  if (config.outlier_zscore != 0 && config.outlier_skip) {
    accept_outlier = [&](const StepResult& result) { return accept(result, number); };
  }
  const double counted =
      1 - static_cast<double>(std::exchange(padding_, 0)) / static_cast<double>(targets);
  optimizer.begin_step({lr, static_cast<double>(batch_targets), counted, stop_requested(),
                        trainer_.write && trainer_.write->written()},
                       accept_outlier);
  span_.reset();
  const bool last = number == last_step_;
  const auto is_multiple = [&](int64_t of) { return of > 0 && number % of == 0; };
  const bool logs = last || number == 1 || is_multiple(std::max<int64_t>(config.log_interval, 1));
  const bool saves = is_multiple(config.save_interval) || is_multiple(config.keep_every) ||
                     number == trainer_.kept_step;
  const bool ends_trace = tracing_ && (last || number == traced_.last);
  // The device is not waited for where nobody looks.
  const bool all = logs || saves || ends_trace || accept_outlier;
  take_in_steps(all ? 0 : optimizer.late_steps());
  if (ends_trace) {
    write_trace();
    tracing_ = false;
  }
  if (logs) log_step(lr);
  if (saves) trainer_.checkpoint();
  if (!stop_ || last) return false;
  take_in_steps(0);
  return true;
}

void Trainer::Impl::Run::take_in_steps(int64_t left) {
  ShardedAdamW& optimizer = trainer_.optimizer;
  while (optimizer.pending() > left) {
    const StepResult result = optimizer.finish_step();
    take_in(result, progress_.step - optimizer.pending());
  }
}

void Trainer::Impl::Run::take_in(const StepResult& result, int64_t step) {
  const TrainConfig& config = trainer_.config;
  if (result.finite()) {
    if (config.outlier_zscore != 0 && !config.outlier_skip) accept(result, step);
    add_loss(result);
  } else {
    report_nonfinite(result, step);
  }
  gradient_norm_ = result.gradient_norm;
  stop_ |= result.stop;
  if (result.written) trainer_.complete_checkpoint();
}

bool Trainer::Impl::Run::accept(const StepResult& result, int64_t step) {
  const TrainConfig& config = trainer_.config;
  const double loss = result.mean_loss();
  const OutlierRow row{step,
                       loss,
                       result.gradient_norm,
                       progress_.losses.zscore(loss),
                       progress_.gradient_norms.zscore(result.gradient_norm),
                       config.outlier_skip};
  // Outliers count among the last steps, too: what has come to stay is soon no outlier any more.
  progress_.losses.add(loss);
  progress_.gradient_norms.add(result.gradient_norm);
  if (std::max(row.loss_zscore, row.gradient_norm_zscore) <= config.outlier_zscore) return true;
  if (trainer_.options.group.rank == 0) trainer_.log.write(row);
  if (config.outlier_skip) ++progress_.skipped_steps;
  return !config.outlier_skip;
}

void Trainer::Impl::Run::report_nonfinite(const StepResult& result, int64_t step) {
  const TrainConfig& config = trainer_.config;
  std::string sequences;
  const int64_t first = (step - 1) * config.batch_size;
  const int64_t named = std::min<int64_t>(config.batch_size, kNamedSequences);
  for (int64_t row = first; rows_.sequence_of && row < first + named; ++row) {
    sequences += fmt::format("{}{}", row == first ? "; sequences " : ", ", rows_.sequence_of(row));
  }
  if (!sequences.empty() && named < config.batch_size) {
    sequences += fmt::format(" and {} more", config.batch_size - named);
  }
  const std::string what = fmt::format("{}: loss {} or gradient norm {} of step {} is not finite{}",
                                       trainer_.options.name, fmt::join(result.losses, ", "),
                                       result.gradient_norm, step, sequences);
  if (!config.skip_nonfinite) {
    throw Error(what +
                ". Leave such steps out (skip_nonfinite = true), or lower the learning rate or set "
                "grad_clip, in another run folder or once this model's is deleted");
  }
  ++progress_.skipped_steps;
  if (++progress_.nonfinite_in_a_row > kMaxNonfinite) {
    throw Error(fmt::format("{}. So were the {} steps before it", what, kMaxNonfinite));
  }
  if (trainer_.options.group.rank == 0) log_warning(what + "; its update is left out");
}

void Trainer::Impl::Run::add_loss(const StepResult& result) {
  progress_.nonfinite_in_a_row = 0;
  ++progress_.interval_steps;
  progress_.interval_loss += result.mean_loss();
  for (const double loss : result.losses) {
    progress_.interval_max_loss = std::max(progress_.interval_max_loss, loss);
  }
}

void Trainer::Impl::Run::log_step(double lr) {
  const double now = now_seconds();
  const PhaseSeconds now_phases = phases();
  const int64_t sequences = interval_steps_ * trainer_.config.batch_size;
  LogRow row;
  row.step = progress_.step;
  row.num_steps = std::max(trainer_.config.steps, progress_.step);
  row.tokens = progress_.targets;
  if (progress_.interval_steps > 0) {
    progress_.last_loss = progress_.interval_loss / static_cast<double>(progress_.interval_steps);
    row.max_loss = progress_.interval_max_loss;
  } else {  // none was finite
    row.max_loss = progress_.last_loss;
  }
  row.loss = progress_.last_loss;
  row.gradient_norm = gradient_norm_;
  row.lr = lr;
  row.seconds = now - interval_start_;
  row.phases = now_phases - interval_phases_;
  row.interval_steps = interval_steps_;
  row.interval_tokens = sequences * (rows_.row_tokens - 1);
  row.interval_flops = train_flops(trainer_.model.config, sequences, rows_.row_tokens - 1);
  if (trainer_.options.group.rank == 0) trainer_.log.write(row);
  progress_.interval_steps = 0;
  progress_.interval_loss = 0;
  progress_.interval_max_loss = -INFINITY;
  interval_start_ = now;
  interval_steps_ = 0;
  interval_phases_ = now_phases;
}

PhaseSeconds Trainer::Impl::Run::phases() {
  PhaseSeconds result = engine_.seconds() + trainer_.optimizer.seconds();
  result.data = data_seconds_;
  return result;
}

void Trainer::Impl::Run::write_trace() {
  const TrainOptions& options = trainer_.options;
  const HostCollectives& group = trainer_.group();
  const std::string mine = (group.rank == 0 ? "" : ",\n") + stop_trace(group.rank);
  const auto all = group.all_gather_bytes(std::as_bytes(std::span(mine)));
  if (group.rank != 0) return;
  const std::filesystem::path file = trace_file(options.folder);
  const std::string events(reinterpret_cast<const char*>(all.data()), all.size());
  write_text_atomically(file, trace_json(events));
  if (options.show_progress) log_info(options.name + ": wrote " + file.string());
}

}  // namespace smalltalk
