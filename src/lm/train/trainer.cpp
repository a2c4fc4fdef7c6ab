#include "smalltalk/lm/train/trainer.hpp"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "lm/model/check_tokens.hpp"
#include "lm/torch/gemm_rate.hpp"
#include "lm/train/trainer_impl.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/run_folder.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {
namespace {

constexpr int64_t kNamedSequences = 64;  // of a step that went wrong
constexpr int kMaxNonfinite = 10;        // steps in a row that may be left out

TrainingLog::Options log_options(const TrainOptions& options, const TrainConfig& config,
                                 const DeviceConfig& device) {
  TrainingLog::Options log;
  log.print = options.show_progress;
  // Rank 0 writes, and only who shows the MFU to somebody needs the rate.
  if (options.group.rank != 0 || (options.folder.empty() && !log.print)) return log;
  log.model = options.name;
  log.folder = options.folder;
  log.tensorboard = config.tensorboard;
  log.group_size = options.group.size;
  log.cuda = device.device == "cuda";
  log.flops_per_second = device_flops_per_second(device);
  return log;
}

}  // namespace

Trainer::Impl::Impl(Transformer& transformer, const TrainConfig& train,
                    const TrainOptions& train_options)
    : model(transformer.impl()),
      engine(model.engine.get()),
      config(train),
      options(train_options),
      optimizer(model, train, train_options.group, train_options.nccl_rendezvous,
                train_options.bucket_bytes),
      log(log_options(options, config, model.device)),
      checkpoints(options.folder / "checkpoints", config.keep_last, config.keep_every) {
  if (config.batch_size < 1 || config.batch_size % options.group.size != 0) {
    throw Error(options.name + ": batch_size (" + std::to_string(config.batch_size) +
                ") must be a multiple of the " + std::to_string(options.group.size) +
                " ranks of the group");
  }
  const int64_t share = config.batch_size / options.group.size;
  micro_batch = config.micro_batch_size == 0 ? share : config.micro_batch_size;
  if (micro_batch < 1 || share % micro_batch != 0) {
    throw Error(options.name + ": micro_batch_size (" + std::to_string(config.micro_batch_size) +
                ") must divide batch_size / ranks (" + std::to_string(share) + ")");
  }
  model.engine->set_recompute(config.recompute);
}

std::span<const int64_t> Trainer::Impl::next_tokens(Loop& loop) {
  const TraceSpan span("wait for tokens", data_seconds);
  return loop.loader.next();
}

double Trainer::Impl::accumulate(Loop& loop) {
  const int64_t share = config.batch_size / options.group.size;
  // Each rank adds its part of the gradient of the mean over all targets of the global batch.
  const auto targets = static_cast<double>(config.batch_size * (loop.row_tokens - 1));
  double loss = 0;
  for (int64_t done = 0; done < share; done += micro_batch) {
    const std::span<const int64_t> tokens = next_tokens(loop);
    // Only the last micro-batch makes gradients final.
    const bool last = done + micro_batch == share;
    loss += model.engine->accumulate_gradients(
        tokens, micro_batch, loop.row_tokens, static_cast<float>(1 / targets),
        last ? optimizer.gradients_ready() : GradientsReady());
  }
  return loss * options.group.size / targets;  // the mean over this rank's targets
}

bool Trainer::Impl::accept(const ShardedAdamW::StepResult& result) {
  if (!result.finite()) return false;
  if (config.outlier_zscore == 0) return true;
  const double loss = result.mean_loss();
  const OutlierRow row{step + 1,
                       loss,
                       result.gradient_norm,
                       losses.zscore(loss),
                       gradient_norms.zscore(result.gradient_norm),
                       config.outlier_skip};
  // Outliers count among the last steps, too: what has come to stay is soon no outlier any more.
  losses.add(loss);
  gradient_norms.add(result.gradient_norm);
  if (std::max(row.loss_zscore, row.gradient_norm_zscore) <= config.outlier_zscore) return true;
  if (options.group.rank == 0) log.write(row);
  if (config.outlier_skip) ++skipped_steps;
  return !config.outlier_skip;
}

void Trainer::Impl::report_nonfinite(const Loop& loop, const ShardedAdamW::StepResult& result) {
  std::string sequences;
  const int64_t first = step * config.batch_size;
  const int64_t named = std::min<int64_t>(config.batch_size, kNamedSequences);
  for (int64_t row = first; loop.sequence_of && row < first + named; ++row) {
    sequences += fmt::format("{}{}", row == first ? "; sequences " : ", ", loop.sequence_of(row));
  }
  if (!sequences.empty() && named < config.batch_size) {
    sequences += fmt::format(" and {} more", config.batch_size - named);
  }
  const std::string what =
      fmt::format("{}: loss {} or gradient norm {} of step {} is not finite{}", options.name,
                  fmt::join(result.losses, ", "), result.gradient_norm, step + 1, sequences);
  if (!config.skip_nonfinite) {
    throw Error(what +
                ". Lower the learning rate, set grad_clip, or leave such steps out "
                "(skip_nonfinite = true)");
  }
  ++skipped_steps;
  if (++nonfinite_in_a_row > kMaxNonfinite) {
    throw Error(fmt::format("{}. So were the {} steps before it", what, kMaxNonfinite));
  }
  if (options.group.rank == 0) log_warning(what + "; its update is left out");
}

PhaseSeconds Trainer::Impl::phases() {
  PhaseSeconds result = engine->seconds() + optimizer.seconds();
  result.data = data_seconds;
  return result;
}

void Trainer::Impl::write_trace() const {
  const HostCollectives& group = options.group;
  const std::string mine = (group.rank == 0 ? "" : ",\n") + stop_trace(group.rank);
  const auto all = group.all_gather_bytes(std::as_bytes(std::span(mine)));
  if (group.rank != 0) return;
  const std::filesystem::path file = options.folder / "trace.json";
  const std::string events(reinterpret_cast<const char*>(all.data()), all.size());
  write_text_atomically(file, trace_json(events));
  if (options.show_progress) log_info(options.name + ": wrote " + file.string());
}

void Trainer::Impl::log_step(int64_t row_tokens, double gradient_norm, double lr) {
  const double now = now_seconds();
  LogRow row;
  row.step = step;
  row.num_steps = std::max(config.steps, step);
  row.tokens = num_targets;
  row.interval_steps = interval_steps;
  if (interval_steps > 0) {
    last_loss = interval_loss / static_cast<double>(interval_steps);
    row.max_loss = interval_max_loss;
  }
  row.loss = last_loss;
  row.gradient_norm = gradient_norm;
  row.lr = lr;
  row.seconds = now - interval_start;
  const PhaseSeconds now_phases = phases();
  row.phases = now_phases - interval_phases;
  const int64_t sequences = interval_timed_steps * config.batch_size;
  row.interval_steps = interval_timed_steps;
  row.interval_tokens = sequences * (row_tokens - 1);
  row.interval_flops = train_flops(model.config, sequences, row_tokens - 1);
  if (options.group.rank == 0) log.write(row);
  interval_loss = 0;
  interval_max_loss = -INFINITY;
  interval_steps = interval_timed_steps = 0;
  interval_phases = now_phases;
  interval_start = now;
}

Trainer::Impl::Loop::Loop(Impl& trainer, const RowSource& rows, int64_t last)
    : loader(rows, trainer.model.config.vocab_size,
             {trainer.config.batch_size, trainer.options.group.rank, trainer.options.group.size,
              trainer.micro_batch, trainer.step, last}),
      row_tokens(rows.row_tokens),
      last_step(last),
      schedule(trainer.config.schedule()),
      sequence_of(rows.sequence_of) {
  if (!trainer.options.folder.empty()) traced = trainer.model.device.traced_steps();
}

void Trainer::Impl::begin_run(const RowSource& rows) {
  if (rows.row_tokens < 2) throw Error(options.name + ": a row needs at least 2 tokens");
  interval_start = now_seconds();
  interval_timed_steps = 0;
  interval_phases = phases();
  if (options.group.rank == 0) log.start(step);
}

void Trainer::Impl::begin_step(Loop& loop) {
  if (step == loop.traced.first && loop.traced.last > step) {
    options.group.barrier();  // the ranks' times count from here
    start_trace();
    loop.tracing = true;
  }
  loop.span.emplace("step", step);
}

bool Trainer::Impl::end_step(Loop& loop, double loss) {
  const double lr = learning_rate(loop.schedule, step);
  // Adam's bias corrections go by the number of updates.
  const ShardedAdamW::StepResult result =
      optimizer.step(step - skipped_steps, lr, loss, stop_requested(),
                     [this](const auto& reduced) { return accept(reduced); });
  loop.span.reset();
  if (!result.finite()) {
    report_nonfinite(loop, result);
  } else {
    nonfinite_in_a_row = 0;
    ++interval_steps;
    interval_loss += result.mean_loss();
    for (const double each : result.losses) interval_max_loss = std::max(interval_max_loss, each);
  }
  ++step;
  if (loop.tracing && (step == loop.traced.last || step == loop.last_step)) {
    write_trace();
    loop.tracing = false;
  }
  ++interval_timed_steps;
  num_targets += config.batch_size * (loop.row_tokens - 1);
  const int64_t interval = std::max<int64_t>(config.log_interval, 1);
  if (step == 1 || step == loop.last_step || step % interval == 0) {
    log_step(loop.row_tokens, result.gradient_norm, lr);
  }
  const bool at_interval = config.save_interval > 0 && step % config.save_interval == 0;
  if (at_interval) checkpoint();
  checkpoints.check();
  return result.stop && step < loop.last_step;
}

void Trainer::Impl::leave() {
  checkpoint();
  flush_checkpoint();
  if (options.group.rank == 0 && !options.folder.empty()) {
    log_info(fmt::format("{}: saved at step {}", options.name, step));
  }
  throw Stopped();
}

TrainSummary Trainer::Impl::run(const RowSource& rows, int64_t last_step) {
  const double start = now_seconds();
  engine = model.engine.get();
  begin_run(rows);
  Loop loop(*this, rows, last_step);
  while (step < last_step) {
    begin_step(loop);
    if (end_step(loop, accumulate(loop))) leave();
  }
  flush_checkpoint();
  return {step, num_targets, last_loss, now_seconds() - start};
}

Trainer::Trainer(Transformer& model, const TrainConfig& config, const TrainOptions& options)
    : impl_(std::make_unique<Impl>(model, config, options)) {}
Trainer::~Trainer() = default;
Trainer::Trainer(Trainer&&) noexcept = default;

int64_t Trainer::resume() {
  if (!impl_->options.folder.empty()) impl_->resume();
  return impl_->step;
}

TrainSummary Trainer::run(const RowSource& rows, int64_t last_step) {
  return impl_->run(rows, last_step);
}

int64_t Trainer::step() const { return impl_->step; }
void Trainer::checkpoint() {
  impl_->checkpoint();
  impl_->flush_checkpoint();
}
void Trainer::save(const std::filesystem::path& file) const { impl_->save(file); }
void Trainer::clear_checkpoints() {
  if (impl_->options.group.rank == 0) impl_->checkpoints.clear();
}

std::map<std::string, std::vector<float>> loss_gradients(Transformer& transformer,
                                                         std::span<const int64_t> tokens,
                                                         int64_t count, int64_t row_tokens,
                                                         double* loss) {
  Transformer::Impl& model = transformer.impl();
  check_tokens(tokens, count, row_tokens, model.config.vocab_size);
  model.allocate_gradients();
  model.gradients.zero_();
  const auto targets = static_cast<double>(count * (row_tokens - 1));
  const double sum = model.engine->accumulate_gradients(tokens, count, row_tokens,
                                                        static_cast<float>(1 / targets), {});
  if (loss != nullptr) *loss = sum / targets;
  const at::Tensor host = model.gradients.to(at::kCPU);
  const float* base = host.const_data_ptr<float>();
  std::map<std::string, std::vector<float>> result;
  for (const ParameterSpec& spec : model.layout.specs) {
    result[spec.name].assign(base + spec.offset, base + spec.offset + spec.size);
  }
  model.gradients.zero_();
  return result;
}

}  // namespace smalltalk
