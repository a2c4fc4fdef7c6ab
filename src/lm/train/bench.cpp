#include "smalltalk/lm/train/bench.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <map>

#include "lm/torch/gemm_rate.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/train/trainer.hpp"

namespace smalltalk {
namespace {

BenchCase make_case(int64_t hidden, int64_t layers, int64_t heads, int64_t vocab, int64_t batch,
                    int64_t length, bool train) {
  BenchCase bench;
  bench.model.hidden_size = hidden;
  bench.model.num_layers = layers;
  bench.model.num_heads = heads;
  bench.model.vocab_size = vocab;
  bench.batch_size = batch;
  bench.seq_length = length;
  bench.train = train;
  return bench;
}

const std::map<std::string, BenchCase>& cases() {
  static const auto all = [] {
    std::map<std::string, BenchCase> result;
    // SmallTalk LM, table 2: the paper's feed-forward has two matrices.
    result["router-step"] = make_case(96, 12, 12, 32000, 32, 256, true);
    result["router-score"] = make_case(96, 12, 12, 32000, 32, 256, false);
    result["router-step"].model.feed_forward = FeedForward::relu2;
    result["router-score"].model.feed_forward = FeedForward::relu2;
    result["tiny-step"] = make_case(128, 4, 4, 4096, 32, 256, true);
    result["expert-step"] = make_case(384, 6, 6, 32000, 8, 512, true);
    result["gpt2-step"] = make_case(768, 12, 12, 50257, 4, 64, true);
    result["custom-step"] = make_case(64, 2, 4, 32000, 1, 1024, true);
    result["custom-score"] = make_case(64, 2, 4, 32000, 1, 1024, false);
    return result;
  }();
  return all;
}

int64_t page_faults() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

struct Measured {
  double seconds = 0;  // of one call
  double page_faults = 0;
};

// work(n) does n calls: two first, from which the number for about `seconds` follows.
Measured measure(double seconds, const std::function<void(int64_t)>& work) {
  work(1);
  const double first = now_seconds();
  work(1);
  const double one = std::max(now_seconds() - first, 1e-9);
  const auto calls = std::max<int64_t>(1, static_cast<int64_t>(seconds / one));
  const int64_t faults = page_faults();
  const double start = now_seconds();
  work(calls);
  return {(now_seconds() - start) / static_cast<double>(calls),
          static_cast<double>(page_faults() - faults) / static_cast<double>(calls)};
}

}  // namespace

const std::vector<std::string>& bench_names() {
  static const auto names = [] {
    std::vector<std::string> result;
    for (const auto& [name, bench] : cases()) result.push_back(name);
    return result;
  }();
  return names;
}

BenchCase bench_case(const std::string& name) {
  const auto found = cases().find(name);
  if (found != cases().end()) return found->second;
  std::string names;
  for (const std::string& known : bench_names()) names += (names.empty() ? "" : ", ") + known;
  throw Error("unknown benchmark '" + name + "': there are " + names);
}

BenchResult run_bench(const BenchCase& bench, double seconds, const DeviceConfig& device) {
  Transformer model(bench.model, device, 1);
  const int64_t row_tokens = bench.seq_length + 1;
  const auto fill = [&](int64_t first, int64_t count, std::span<int64_t> tokens) {
    const auto vocab = static_cast<uint64_t>(bench.model.vocab_size);
    for (int64_t i = 0; i < count * row_tokens; ++i) {
      const auto index = static_cast<uint64_t>(first * row_tokens + i);
      tokens[static_cast<size_t>(i)] =
          static_cast<int64_t>(derive_seed(1, "bench tokens", index) % vocab);
    }
  };

  Measured step;
  if (bench.train) {
    TrainConfig config;
    config.steps = INT64_MAX;
    config.batch_size = bench.batch_size;
    config.lr = 1e-4;
    config.lr_decay = Decay::constant;
    config.log_interval = INT64_MAX;
    config.save_interval = 0;
    TrainOptions options;
    options.name = "bench";
    options.show_progress = false;
    Trainer trainer(model, config, options);
    const RowSource rows{row_tokens, fill};
    step = measure(0.8 * seconds, [&](int64_t n) { trainer.run(rows, trainer.step() + n); });
  } else {
    std::vector<int64_t> row(static_cast<size_t>(row_tokens));
    fill(0, 1, row);
    const RowSource rows{row_tokens, [&](int64_t, int64_t count, std::span<int64_t> tokens) {
                           for (int64_t i = 0; i < count; ++i) {
                             std::ranges::copy(row, tokens.begin() + i * row_tokens);
                           }
                         }};
    step = measure(0.8 * seconds, [&](int64_t n) {
      visit_log_probs(model, rows, 0, n * bench.batch_size, [](const LogProbs&) {});
    });
  }
  const auto flops_of = bench.train ? train_flops : forward_flops;
  BenchResult result;
  result.seconds_per_step = step.seconds;
  result.tokens_per_second =
      static_cast<double>(bench.batch_size * bench.seq_length) / step.seconds;
  result.model_flops_per_second =
      flops_of(model.config(), bench.batch_size, bench.seq_length) / step.seconds;
  result.page_faults_per_step = step.page_faults;
  result.parameters = model.num_parameters();
  result.peak_memory_bytes = peak_memory_bytes();
  result.gemm_flops_per_second = measure_gemm_rate(0.2 * seconds, device);
  return result;
}

}  // namespace smalltalk
