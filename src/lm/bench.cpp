#include "smalltalk/lm/bench.hpp"

#include <ATen/ATen.h>

#include <algorithm>

#include "smalltalk/core/error.hpp"
#include "smalltalk/core/flops.hpp"
#include "smalltalk/core/log.hpp"
#include "smalltalk/core/random.hpp"
#include "smalltalk/lm/trainer.hpp"
#include "smalltalk/lm/transformer.hpp"

namespace smalltalk {
namespace {

struct Case {
  std::string name;
  ModelConfig model;
  int64_t sequences, length;
  bool train;
};

Case make_case(const std::string& name) {
  ModelConfig model;
  if (name == "router-step" || name == "router-score") {
    // SmallTalk LM, table 2: the paper's feed-forward has two matrices.
    model.vocab_size = 32000;
    model.hidden_size = 96;
    model.num_layers = 12;
    model.num_heads = 12;
    model.feed_forward = FeedForward::relu2;
    return {name, model, 32, 256, name == "router-step"};
  }
  if (name == "tiny-step") {
    model.vocab_size = 4096;
    model.hidden_size = 128;
    model.num_layers = 4;
    return {name, model, 32, 256, true};
  }
  if (name == "expert-step") {
    model.vocab_size = 32000;
    model.hidden_size = 384;
    model.num_layers = 6;
    model.num_heads = 6;
    return {name, model, 8, 512, true};
  }
  throw Error("unknown benchmark '" + name +
              "': router-step, router-score, tiny-step or expert-step");
}

// Seconds of one call: the mean over calls that take about `seconds`.
template <typename F>
double time_of(double seconds, F&& work) {
  const double start = now_seconds();
  int64_t calls = 0;
  do {
    work();
    ++calls;
  } while (now_seconds() - start < seconds);
  return (now_seconds() - start) / static_cast<double>(calls);
}

double gemm_rate(double seconds, const DeviceConfig& device) {
  const bool cuda = device.device == "cuda";
  const int64_t size = cuda ? 8192 : 1024;
  const auto type = device.precision == "bf16-mixed" ? at::kBFloat16 : at::kFloat;
  const auto options = at::device(cuda ? at::kCUDA : at::kCPU).dtype(type);
  const at::Tensor a = at::ones({size, size}, options), b = at::ones({size, size}, options);
  at::Tensor c = at::empty({size, size}, options);
  const auto product = [&] {
    at::mm_out(c, a, b);
    if (cuda) c[0][0].item();  // waits for the device
  };
  product();
  const auto extent = static_cast<double>(size);
  return 2 * extent * extent * extent / time_of(seconds, product);
}

}  // namespace

const std::vector<std::string>& bench_names() {
  static const std::vector<std::string> names = {"router-step", "router-score", "tiny-step",
                                                 "expert-step"};
  return names;
}

BenchResult run_bench(const std::string& name, double seconds, const DeviceConfig& device) {
  const Case work = make_case(name);
  Transformer model(work.model, device, 1);
  const int64_t row_tokens = work.length + 1;
  const auto fill = [&](int64_t first, int64_t count, std::span<int64_t> tokens) {
    const auto vocab = static_cast<uint64_t>(work.model.vocab_size);
    for (int64_t i = 0; i < count * row_tokens; ++i) {
      const auto index = static_cast<uint64_t>(first * row_tokens + i);
      tokens[static_cast<size_t>(i)] =
          static_cast<int64_t>(derive_seed(1, "bench tokens", index) % vocab);
    }
  };

  double step_seconds = 0;
  if (work.train) {
    TrainConfig config;
    config.steps = INT64_MAX;
    config.batch_size = work.sequences;
    config.lr = 1e-4;
    config.lr_decay = Decay::constant;
    config.log_interval = INT64_MAX;
    config.save_interval = 0;
    TrainOptions options;
    options.name = name;
    options.show_progress = false;
    Trainer trainer(model, config, options);
    const RowSource rows{row_tokens, fill};
    const auto step = [&] { trainer.run(rows, trainer.step() + 1); };
    step();
    step_seconds = time_of(0.8 * seconds, step);
  } else {
    std::vector<int64_t> tokens(static_cast<size_t>(work.sequences * row_tokens));
    fill(0, work.sequences, tokens);
    std::vector<double> scores(static_cast<size_t>(work.sequences));
    const auto score = [&] {
      model.log_likelihoods(tokens, work.sequences, row_tokens, {&row_tokens, 1}, work.sequences,
                            scores);
    };
    score();
    step_seconds = time_of(0.8 * seconds, score);
  }
  const double flops = work.train ? train_flops(model.config(), work.sequences, work.length)
                                  : forward_flops(model.config(), work.sequences, work.length);
  const auto targets = static_cast<double>(work.sequences * work.length);
  return {targets / step_seconds, flops / step_seconds, gemm_rate(0.2 * seconds, device)};
}

}  // namespace smalltalk
