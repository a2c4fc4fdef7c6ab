#include "smalltalk/lm/trainer.hpp"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "sharded_adamw.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/core/flops.hpp"
#include "smalltalk/core/log.hpp"
#include "trainer_impl.hpp"

namespace smalltalk {

Trainer::Impl::Impl(Transformer& transformer, const TrainConfig& train,
                    const TrainOptions& train_options)
    : model(transformer.impl()),
      config(train),
      options(train_options),
      optimizer(model, train, train_options.group, train_options.nccl_rendezvous),
      log(options.name,
          options.folder.empty() || options.group.rank != 0 ? std::filesystem::path()
                                                            : options.folder / "metrics.jsonl",
          options.group.size, model.device.device == "cuda", model.device.flops_per_second) {
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
  interval_losses.assign(static_cast<size_t>(options.group.size), 0.0);
}

double Trainer::Impl::accumulate(const RowSource& rows) {
  const int64_t share = config.batch_size / options.group.size;
  const int64_t first = step * config.batch_size + options.group.rank * share;
  // Each rank adds its part of the gradient of the mean over all targets of the global batch.
  const auto targets = static_cast<double>(config.batch_size * (rows.row_tokens - 1));
  tokens.resize(static_cast<size_t>(micro_batch * rows.row_tokens));
  double loss = 0;
  for (int64_t done = 0; done < share; done += micro_batch) {
    const double start = now_seconds();
    rows.read(first + done, micro_batch, tokens);
    check_tokens(tokens, micro_batch, rows.row_tokens, model.config.vocab_size);
    interval_data_seconds += now_seconds() - start;
    loss += model.engine->accumulate_gradients(tokens, micro_batch, rows.row_tokens,
                                               static_cast<float>(1 / targets));
  }
  return loss * options.group.size / targets;  // the mean over this rank's targets
}

void Trainer::Impl::log_step(int64_t row_tokens, double gradient_norm, double lr) {
  const double now = now_seconds();
  LogRow row;
  row.step = step;
  row.num_steps = std::max(config.steps, step);
  row.tokens = num_targets;
  row.interval_steps = interval_steps;
  double sum = 0, highest = -INFINITY;
  for (double loss : interval_losses) {
    sum += loss;
    highest = std::max(highest, loss);
  }
  row.loss = last_loss = sum / static_cast<double>(options.group.size * interval_steps);
  row.max_loss = highest / static_cast<double>(interval_steps);
  row.gradient_norm = gradient_norm;
  row.lr = lr;
  row.seconds = now - interval_start;
  row.data_seconds = interval_data_seconds;
  const int64_t sequences = interval_timed_steps * config.batch_size;
  row.interval_steps = interval_timed_steps;
  row.interval_tokens = sequences * (row_tokens - 1);
  row.interval_flops = train_flops(model.config, sequences, row_tokens - 1);
  if (options.group.rank == 0) log.write(row, options.show_progress);
  std::fill(interval_losses.begin(), interval_losses.end(), 0.0);
  interval_steps = interval_timed_steps = 0;
  interval_data_seconds = 0;
  interval_start = now;
}

TrainSummary Trainer::Impl::run(const RowSource& rows, int64_t last_step) {
  if (rows.row_tokens < 2) throw Error(options.name + ": a row needs at least 2 tokens");
  const double start = now_seconds();
  interval_start = start;
  interval_timed_steps = 0;
  interval_data_seconds = 0;
  const Schedule schedule = config.schedule();
  while (step < last_step) {
    const double loss = accumulate(rows);
    const double lr = learning_rate(schedule, step);
    const ShardedAdamW::StepResult result = optimizer.step(step, lr, loss);
    for (size_t i = 0; i < result.losses.size(); ++i) {
      interval_losses[i] += result.losses[i];
      if (!std::isfinite(result.losses[i]) || !std::isfinite(result.gradient_norm)) {
        throw Error(options.name + ": loss " + std::to_string(result.losses[i]) +
                    " or gradient norm " + std::to_string(result.gradient_norm) + " at step " +
                    std::to_string(step) +
                    " is not finite: lower the learning rate or set grad_clip");
      }
    }
    ++step;
    ++interval_steps;
    ++interval_timed_steps;
    num_targets += config.batch_size * (rows.row_tokens - 1);
    const int64_t interval = std::max<int64_t>(config.log_interval, 1);
    if (step == 1 || step == last_step || step % interval == 0) {
      log_step(rows.row_tokens, result.gradient_norm, lr);
    }
    const bool save_now = config.save_interval > 0 && step % config.save_interval == 0;
    if (save_now && !options.folder.empty()) save(options.folder / "checkpoint.safetensors");
  }
  return {step, num_targets, last_loss, now_seconds() - start};
}

Trainer::Trainer(Transformer& model, const TrainConfig& config, const TrainOptions& options)
    : impl_(std::make_unique<Impl>(model, config, options)) {}
Trainer::~Trainer() = default;
Trainer::Trainer(Trainer&&) noexcept = default;

int64_t Trainer::resume() {
  const std::filesystem::path file = impl_->options.folder / "checkpoint.safetensors";
  if (impl_->options.folder.empty()) return impl_->step;
  if (std::filesystem::exists(file)) impl_->load(file);
  if (impl_->options.group.rank == 0) impl_->log.rewind(impl_->step);
  return impl_->step;
}

TrainSummary Trainer::run(const RowSource& rows, int64_t last_step) {
  return impl_->run(rows, last_step);
}

int64_t Trainer::step() const { return impl_->step; }
void Trainer::save(const std::filesystem::path& file) const { impl_->save(file); }
void Trainer::load(const std::filesystem::path& file) { impl_->load(file); }

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
                                                        static_cast<float>(1 / targets));
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
