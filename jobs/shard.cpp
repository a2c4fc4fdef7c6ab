// shard: which expert gets which sequence.
#include "jobs.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"

namespace smalltalk {

namespace {

// What `shard` may be told beyond the experiment.
struct ShardFlags {
  std::string method;  // empty: the experiment's
  ShardOptions options;

  ShardOptions of(const Run& run) const {
    ShardOptions all = options;
    const AssignOptions experiment = shard_options(run).assign;
    all.assign.method = method.empty() ? experiment.method : assignment_method(method);
    all.assign.threads = experiment.threads;
    require_acting(all.assign.method, all.assign.epsilon, all.shares);
    return all;
  }
};

}  // namespace

void add_shard_job(CLI::App& app, JobRun& run) {
  auto* job = app.add_subcommand("shard", "Assign every sequence to an expert with the routers");
  auto options = std::make_shared<RunOptions>();
  auto flags = std::make_shared<ShardFlags>();
  add_run_options(*job, *options);
  add_assignment_options(*job, flags->method, flags->options.assign.epsilon, flags->options.shares);
  job->add_option("--prefix-tokens", flags->options.prefix_tokens,
                  "Route on fewer tokens than the routers were trained on: a half, a quarter or an "
                  "eighth of them")
      ->check(CLI::PositiveNumber);
  job->add_flag("--append", flags->options.append,
                "The text has grown at its end: keep the assignment of shards.h5 and assign only "
                "the new sequences, each expert up to its new capacity");
  job->footer(
      "Reads RUN/tokens/ and RUN/routers/; writes RUN/shards/ and makes RUN/shards.h5 (and the\n"
      "controls' RUN/random_shards.h5 and, with baselines.tfidf_shards, RUN/tfidf_shards.h5) a\n"
      "link to the new file. Scores are kept in RUN/scores/:\n"
      "started again after a crash, with more text, other capacities or another method, it\n"
      "computes only what is missing. Experts that have begun to train keep the file they began\n"
      "with.\n"
      "  mpirun -n 4 smalltalk shard jobs/tiny.toml --out RUN");
  job->callback([&run, options, flags] {
    run = [options, flags] {
      return run_stage(*options, Phase::shard, true, [&](OpenedRun& opened) {
        shard(opened.run, opened.world, flags->of(opened.run));
      });
    };
  });
}

}  // namespace smalltalk
