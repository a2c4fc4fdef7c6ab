// smalltalk bench: the speed of this machine on one of the models that matter.
#include "smalltalk/lm/train/bench.hpp"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "jobs.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"

namespace smalltalk {
namespace {

BenchCase with_shape(BenchCase bench, const BenchCase& shape) {
  const auto set = [](int64_t& value, int64_t asked) { value = asked > 0 ? asked : value; };
  set(bench.model.hidden_size, shape.model.hidden_size);
  set(bench.model.num_layers, shape.model.num_layers);
  set(bench.model.num_heads, shape.model.num_heads);
  set(bench.model.vocab_size, shape.model.vocab_size);
  set(bench.model.merged_experts, shape.model.merged_experts);
  set(bench.model.segment_tokens, shape.model.segment_tokens);
  set(bench.batch_size, shape.batch_size);
  set(bench.seq_length, shape.seq_length);
  return bench;
}

struct Options {
  std::string name;
  double seconds = 10;
  bool json = false;
  DeviceConfig device;
  BenchCase shape;  // 0: as the name says
};

void bench(const Options& options) {
  configure_runtime(options.device, 0);
  const BenchResult result = run_bench(with_shape(bench_case(options.name), options.shape),
                                       options.seconds, options.device);
  if (options.json) {
    const nlohmann::ordered_json line = {{"tokens_per_second", result.tokens_per_second},
                                         {"model_flops_per_second", result.model_flops_per_second},
                                         {"gemm_flops_per_second", result.gemm_flops_per_second},
                                         {"seconds_per_step", result.seconds_per_step},
                                         {"page_faults_per_step", result.page_faults_per_step},
                                         {"parameters", result.parameters},
                                         {"peak_memory_bytes", result.peak_memory_bytes}};
    std::printf("%s\n", line.dump().c_str());
    return;
  }
  std::printf(
      "%s: %s tokens/s, %sFLOP/s of the model, %sFLOP/s of large products (%.0f %%), "
      "%.1f page faults a step\n",
      options.name.c_str(), human_count(result.tokens_per_second).c_str(),
      human_count(result.model_flops_per_second).c_str(),
      human_count(result.gemm_flops_per_second).c_str(),
      100 * result.model_flops_per_second / result.gemm_flops_per_second,
      result.page_faults_per_step);
}

}  // namespace

void add_bench_job(CLI::App& app, JobRun& run) {
  CLI::App* job = app.add_subcommand("bench", "Measure the speed of training and scoring");
  const auto options = std::make_shared<Options>();
  options->shape.model.hidden_size = options->shape.model.num_layers = 0;
  options->shape.model.num_heads = options->shape.batch_size = options->shape.seq_length = 0;
  job->add_option("name", options->name, "what to measure")
      ->required()
      ->check(CLI::IsMember(bench_names()));
  job->add_option("--seconds", options->seconds, "how long to measure")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  job->add_option("--device", options->device.device, "where to compute")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  job->add_option("--precision", options->device.precision, "bf16-mixed needs a GPU")
      ->check(CLI::IsMember({"float32", "bf16-mixed"}))
      ->capture_default_str();
  job->add_option("--threads", options->device.threads, "compute threads on the CPU")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  const auto shape = [&](const char* option, int64_t& value, const char* help) {
    job->add_option(option, value, std::string(help) + ", in place of the named benchmark's")
        ->check(CLI::PositiveNumber);
  };
  shape("--hidden-size", options->shape.model.hidden_size, "H");
  shape("--num-layers", options->shape.model.num_layers, "L");
  shape("--num-heads", options->shape.model.num_heads, "attention heads");
  shape("--vocab-size", options->shape.model.vocab_size, "V");
  CLI::Option* experts =
      job->add_option("--merged-experts", options->shape.model.merged_experts,
                      "experts that feed-forwards are merged from (Lory); 0: plain ones")
          ->check(CLI::NonNegativeNumber);
  job->add_option("--segment-tokens", options->shape.model.segment_tokens,
                  "for which they are merged anew")
      ->check(CLI::PositiveNumber)
      ->needs(experts);
  shape("--batch-size", options->shape.batch_size, "sequences of a step");
  shape("--seq-length", options->shape.seq_length, "tokens of a sequence");
  job->add_flag("--json", options->json, "print the figures as one JSON line");
  job->callback([options, &run] {
    const bool cuda = options->device.device == "cuda";
    if (!cuda && options->device.precision != "float32") {
      throw CLI::ValidationError("--precision", "bf16-mixed needs --device cuda");
    }
    if (cuda && options->device.threads != 1) {
      throw CLI::ValidationError("--threads", "has no effect with --device cuda");
    }
    run = [options] { return run_alone("bench", [&] { bench(*options); }); };
  });
}

}  // namespace smalltalk
