// smalltalk bench: the speed of this machine on one of the models that matter.
#include "smalltalk/lm/bench.hpp"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "jobs.hpp"
#include "smalltalk/core/log.hpp"
#include "smalltalk/lm/transformer.hpp"

namespace smalltalk {

void add_bench_job(CLI::App& app, JobRun& run) {
  struct Options {
    std::string name;
    double seconds = 10;
    bool json = false;
    DeviceConfig device;
  };
  CLI::App* job = app.add_subcommand("bench", "Measure the speed of training and scoring");
  const auto options = std::make_shared<Options>();
  job->add_option("name", options->name, "what to measure")
      ->required()
      ->check(CLI::IsMember(bench_names()));
  job->add_option("--seconds", options->seconds, "how long to measure")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  job->add_option("--device", options->device.device, "cpu or cuda")->capture_default_str();
  job->add_option("--precision", options->device.precision, "float32 or bf16-mixed (cuda)")
      ->capture_default_str();
  job->add_option("--threads", options->device.threads, "compute threads on the CPU")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  job->add_flag("--json", options->json, "print the figures as one JSON line");
  job->callback([options, &run] {
    run = [options] {
      configure_runtime(options->device, 0);
      const BenchResult result = run_bench(options->name, options->seconds, options->device);
      if (options->json) {
        const nlohmann::ordered_json line = {
            {"tokens_per_second", result.tokens_per_second},
            {"model_flops_per_second", result.model_flops_per_second},
            {"gemm_flops_per_second", result.gemm_flops_per_second}};
        std::printf("%s\n", line.dump().c_str());
      } else {
        std::printf("%s: %s tokens/s, %sFLOP/s of the model, %sFLOP/s of one large product\n",
                    options->name.c_str(), human_count(result.tokens_per_second).c_str(),
                    human_count(result.model_flops_per_second).c_str(),
                    human_count(result.gemm_flops_per_second).c_str());
      }
      return 0;
    };
  });
}

}  // namespace smalltalk
