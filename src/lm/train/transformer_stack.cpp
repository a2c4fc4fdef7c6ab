#include "smalltalk/lm/train/transformer_stack.hpp"

#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <deque>
#include <tuple>

#include "lm/model/transformer_impl.hpp"
#include "lm/train/trainer_impl.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {

namespace {

bool compute_alike(const ModelConfig& a, const ModelConfig& b) {
  const auto all = [](const ModelConfig& c) {
    return std::tuple(c.vocab_size, c.hidden_size, c.num_layers, c.num_heads, c.num_kv_heads,
                      c.intermediate_size, c.feed_forward, c.tie_embeddings, c.rope_theta,
                      c.rms_norm_eps);
  };
  return all(a) == all(b);
}

}  // namespace

struct TransformerStack::Impl {
  Transformer::Impl all;
  std::vector<Transformer> models;  // views of `all`
  std::vector<int64_t> tokens;      // of one micro-batch of all models

  void allocate_gradients();
};

TransformerStack::TransformerStack(const ModelConfig& config, const DeviceConfig& device,
                                   size_t num_models) {
  ST_CHECK(num_models > 0);
  const auto count = static_cast<int64_t>(num_models);
  impl_ = std::make_unique<Impl>(Impl{{config, device, {}, nullptr, count}, {}, {}});
  Transformer::Impl& all = impl_->all;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t size = all.layout.total;
    auto view = std::make_unique<Transformer::Impl>(
        config, device, all.parameters.narrow(0, i * size, size), all.team);
    impl_->models.emplace_back(std::move(view));
  }
}

TransformerStack::TransformerStack(const ModelConfig& config, const DeviceConfig& device,
                                   std::span<const uint64_t> seeds)
    : TransformerStack(config, device, seeds.size()) {
  for (size_t i = 0; i < seeds.size(); ++i) impl_->models[i].impl().init(seeds[i]);
}

std::unique_ptr<TransformerStack> TransformerStack::load(
    std::span<const std::filesystem::path> folders, const DeviceConfig& device) {
  ST_CHECK(!folders.empty());
  std::unique_ptr<TransformerStack> stack;
  for (size_t i = 0; i < folders.size(); ++i) {
    const Transformer model = Transformer::load(folders[i], device);
    if (!stack) {
      stack.reset(new TransformerStack(model.config(), device, folders.size()));
    }
    if (!compute_alike(model.config(), (*stack)[0].config())) {
      throw Error("'" + folders[i].string() + "' and '" + folders[0].string() +
                  "' hold models of different shapes: they cannot compute as one");
    }
    (*stack)[static_cast<int64_t>(i)].set_weights(model.weights());
  }
  return stack;
}

TransformerStack::~TransformerStack() = default;

int64_t TransformerStack::size() const { return impl_->all.num_models; }
Transformer& TransformerStack::operator[](int64_t model) {
  return impl_->models[static_cast<size_t>(model)];
}

TransformerStack::operator ModelsView() const { return ModelsView(impl_->all); }

// The trainers' gradients become parts of one buffer.
void TransformerStack::Impl::allocate_gradients() {
  if (all.gradients.defined()) return;
  all.allocate_gradients();
  for (size_t i = 0; i < models.size(); ++i) {
    Transformer::Impl& model = models[i].impl();
    model.gradients =
        all.gradients.narrow(0, static_cast<int64_t>(i) * all.layout.total, all.layout.total);
    model.allocate_gradients();
  }
}

void TransformerStack::train(std::span<Trainer* const> trainers, std::span<const RowSource> rows,
                             int64_t last_step) {
  ST_CHECK(std::ssize(trainers) == size() && std::ssize(rows) == size());
  impl_->allocate_gradients();
  Trainer::Impl& first = trainers[0]->impl();
  std::deque<Trainer::Impl::Loop> loops;  // they do not move
  for (size_t i = 0; i < trainers.size(); ++i) {
    Trainer::Impl& trainer = trainers[i]->impl();
    ST_CHECK(&trainer.model == &impl_->models[i].impl() && trainer.options.group.size == 1 &&
             trainer.step == first.step && trainer.micro_batch == first.micro_batch &&
             trainer.config.batch_size == first.config.batch_size &&
             rows[i].row_tokens == rows[0].row_tokens);
    trainer.engine = impl_->all.engine.get();  // a pass over all models counts for each
    trainer.begin_run(rows[i]);
    loops.emplace_back(trainer, rows[i], last_step);
  }
  Engine& engine = *impl_->all.engine;
  engine.set_recompute(first.config.recompute);
  const int64_t row_tokens = rows[0].row_tokens;
  const auto targets = static_cast<double>(first.config.batch_size * (row_tokens - 1));
  while (first.step < last_step) {
    for (size_t i = 0; i < trainers.size(); ++i) trainers[i]->impl().begin_step(loops[i]);
    std::vector<double> losses(trainers.size());
    for (int64_t done = 0; done < first.config.batch_size; done += first.micro_batch) {
      impl_->tokens.clear();
      for (size_t i = 0; i < trainers.size(); ++i) {
        const auto part = trainers[i]->impl().next_tokens(loops[i]);
        impl_->tokens.insert(impl_->tokens.end(), part.begin(), part.end());
      }
      const std::vector<double> sums = engine.accumulate_gradients_of_models(
          impl_->tokens, first.micro_batch, row_tokens, static_cast<float>(1 / targets), {});
      for (size_t i = 0; i < losses.size(); ++i) losses[i] += sums[i];
    }
    bool stop = false;
    for (size_t i = 0; i < trainers.size(); ++i) {
      stop |= trainers[i]->impl().end_step(loops[i], losses[i] / targets);
    }
    if (!stop) continue;
    for (Trainer* trainer : trainers) trainer->checkpoint();
    throw Stopped();
  }
  for (Trainer* trainer : trainers) trainer->impl().flush_checkpoint();
}

}  // namespace smalltalk
