#include "smalltalk/lm/train/trainer.hpp"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <deque>

#include "lm/model/check_tokens.hpp"
#include "lm/torch/gemm_rate.hpp"
#include "lm/train/trainer_impl.hpp"
#include "lm/train/training_run.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"

namespace smalltalk {
namespace {

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
      whole(parameter_layout(model.config)),
      config(train),
      options(train_options),
      optimizer(model, train, train_options.group, train_options.bucket_bytes),
      log(log_options(options, config, model.device)),
      kept_step(options.keeps_stable_phase ? config.schedule().end_of_stable_phase() : 0),
      checkpoints(options.folder, {config.keep_last, config.keep_every, kept_step}) {
  if (config.batch_size < 1 || config.batch_size % options.group.size != 0) {
    throw Error(options.name + ": batch_size (" + std::to_string(config.batch_size) +
                ") must be a multiple of the " + std::to_string(options.group.size) +
                " ranks of the group");
  }
  const ExpertSlice& slice = model.layout.slice;
  ST_CHECK(slice.is_all() ||
           (slice.rank == options.group.rank && slice.ranks == options.group.size));
  const int64_t share = config.batch_size / options.group.size;
  micro_batch = config.micro_batch_size == 0 ? share : config.micro_batch_size;
  if (micro_batch < 1 || share % micro_batch != 0) {
    throw Error(options.name + ": micro_batch_size (" + std::to_string(config.micro_batch_size) +
                ") must divide batch_size / ranks (" + std::to_string(share) + ")");
  }
}

void Trainer::Impl::train(Transformer::Impl& models, std::span<Impl* const> trainers,
                          std::span<const RowSource> rows, int64_t last_step) {
  // What is the same for all models is taken from the first.
  Impl& first = *trainers[0];
  const HostCollectives& group = first.options.group;
  const int64_t row_tokens = rows[0].row_tokens;
  if (row_tokens < 2) throw Error(first.options.name + ": a row needs at least 2 tokens");
  // Each rank computes its share of the gradient of the mean over all targets of the global batch.
  const int64_t share = first.config.batch_size / group.size;
  const auto targets = static_cast<double>(first.config.batch_size * (row_tokens - 1));
  const auto scale = static_cast<float>(1 / targets);
  Engine& engine = *models.engine;
  engine.begin_training({first.config.recompute, group.size > 1});
  std::deque<Run> runs;  // they do not move
  for (size_t i = 0; i < trainers.size(); ++i) {
    runs.emplace_back(*trainers[i], engine, rows[i], last_step);
  }
  std::vector<int64_t> tokens;  // of one micro-batch of each model
  while (first.progress.step < last_step) {
    for (Run& run : runs) run.begin_step();
    for (int64_t done = 0; done < share; done += first.micro_batch) {
      tokens.clear();
      for (Run& run : runs) {
        const std::span<const int64_t> mine = run.next_tokens();
        tokens.insert(tokens.end(), mine.begin(), mine.end());
      }
      // Only the last micro-batch makes gradients final.
      const bool last = done + first.micro_batch == share;
      const LossSums losses = engine.accumulate_gradients(tokens, first.micro_batch, row_tokens,
                                                          scale, first.optimizer.exchange(last));
      for (size_t i = 0; i < trainers.size(); ++i) {
        trainers[i]->optimizer.add_loss(losses, static_cast<int64_t>(i));
      }
    }
    if (first.options.show_progress && first.options.group.rank == 0 && !first.told_attention &&
        !engine.attention().empty()) {
      first.told_attention = true;
      log_info(fmt::format("{}: attention is {}", first.options.name, engine.attention()));
    }
    bool stop = false;
    for (Run& run : runs) stop |= run.end_step(share * (row_tokens - 1));
    if (stop) save_and_stop(trainers);
  }
  for (Impl* trainer : trainers) trainer->flush_checkpoint();
}

void Trainer::Impl::save_and_stop(std::span<Impl* const> trainers) {
  std::vector<std::string> names;
  for (Impl* trainer : trainers) {
    trainer->checkpoint();
    names.push_back(trainer->options.name);
  }
  for (Impl* trainer : trainers) trainer->flush_checkpoint();
  const Impl& first = *trainers[0];
  if (first.options.group.rank == 0 && !first.options.folder.empty()) {
    log_info(fmt::format("{}: saved at step {}", fmt::join(names, ", "), first.progress.step));
  }
  throw Stopped();
}

Trainer::Trainer(Transformer& model, const TrainConfig& config, const TrainOptions& options)
    : impl_(std::make_unique<Impl>(model, config, options)) {}
Trainer::~Trainer() = default;
Trainer::Trainer(Trainer&&) noexcept = default;

int64_t Trainer::resume() {
  if (!impl_->options.folder.empty()) impl_->resume();
  return step();
}

TrainSummary Trainer::run(const RowSource& rows, int64_t last_step) {
  Impl* const alone = impl_.get();
  Impl::train(alone->model, {&alone, 1}, {&rows, 1}, last_step);
  const TrainingProgress& progress = alone->progress;
  return {progress.step, progress.targets, progress.last_loss};
}

void train_stack(TransformerStack& stack, std::span<Trainer* const> trainers,
                 std::span<const RowSource> rows, int64_t last_step) {
  ST_CHECK(std::ssize(trainers) == stack.size() && std::ssize(rows) == stack.size());
  std::vector<Trainer::Impl*> impls;
  for (int64_t i = 0; i < stack.size(); ++i) {
    Trainer::Impl& each = *impls.emplace_back(trainers[i]->impl_.get());
    const Trainer::Impl& first = *impls[0];
    ST_CHECK(&each.model == &stack[i].impl() && each.options.group.size == 1 &&
             each.progress.step == first.progress.step && each.micro_batch == first.micro_batch &&
             each.config.batch_size == first.config.batch_size &&
             rows[i].row_tokens == rows[0].row_tokens);
  }
  Trainer::Impl::train(stack.with_gradients(), impls, rows, last_step);
}

int64_t Trainer::step() const { return impl_->progress.step; }
void Trainer::checkpoint() {
  impl_->checkpoint();
  impl_->flush_checkpoint();
}
void Trainer::save(const std::filesystem::path& file) const { impl_->save(file); }
void Trainer::save_model(const std::filesystem::path& folder,
                         const std::map<std::string, std::string>& metadata) const {
  impl_->save_model(folder, metadata);
}
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
  const double sum =
      model.engine
          ->accumulate_gradients(tokens, count, row_tokens, static_cast<float>(1 / targets), {})
          .values()[0];
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
