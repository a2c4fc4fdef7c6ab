// prepare: from text to token files.
#include "smalltalk/data/prepare.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>

#include "jobs.hpp"
#include "preflight.hpp"
#include "run_job.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/core/system/write_lock.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

struct PrepareJob {
  RunOptions run;
  std::vector<std::string> inputs;
  std::string tokenizer;
  int64_t vocab_size = 0;
  int64_t sample_bytes = 10'000'000;
  DocumentFields fields;
  double max_bad_fraction = 0;
  bool verify = false;
  bool json = false;
};

nlohmann::ordered_json figures_of(const PrepareReport& report) {
  return {{"documents", report.info.num_documents}, {"tokens", report.info.num_tokens},
          {"padding", report.info.padding},         {"text_bytes", report.info.text_bytes},
          {"bad_utf8", report.bad.bad_utf8},        {"empty", report.bad.empty},
          {"broken_json", report.bad.broken_json},  {"bent", report.bad.bent},
          {"files_left_out", report.left_out}};
}

nlohmann::ordered_json with_speed(nlohmann::ordered_json figures, int64_t tokens, double seconds,
                                  bool already_complete) {
  figures["seconds"] = seconds;
  figures["tokens_per_second"] = static_cast<double>(tokens) / seconds;
  figures["already_complete"] = already_complete;
  return figures;
}

// The tokenizer and the token files of a run folder.
void prepare_run(const PrepareJob& job, OpenedRun& opened) {
  Run& run = opened.run;
  const HostCollectives ranks = host_collectives(opened.world);
  const double start = now_seconds();
  const bool complete = first_rank_says(tokens_stage(run.layout).complete(), ranks);
  require_runnable(run);
  prepare_tokens_of(run, ranks, job.verify);
  const double seconds = now_seconds() - start;
  require_tokens(run);
  if (!job.json || opened.world.rank() != 0) return;
  nlohmann::ordered_json figures;
  int64_t tokens = 0;
  for (const char* split : kSplits) {
    const PrepareReport report = report_of(run.layout.tokens(split));
    figures[split] = figures_of(report);
    tokens += report.info.num_tokens;
  }
  std::cout << with_speed(figures, tokens, seconds, complete).dump() << std::endl;
}

// One token file from the files named on the command line.
int prepare_inputs(const PrepareJob& job, Session& session) {
  Communicator& world = session.world();
  if (job.tokenizer.empty()) throw Error("say --tokenizer FILE (and --vocab-size V to train it)");
  const HostCollectives ranks = host_collectives(world);
  const fs::path out = job.run.out;
  std::optional<WriteLock> lock;
  run_together(ranks, [&] {
    if (world.rank() != 0) return;
    lock.emplace(out.parent_path() / ("." + out.filename().string() + ".lock"), out.string());
  });
  const bool missing = first_rank_says(!fs::exists(job.tokenizer), ranks);
  if (missing && job.vocab_size == 0) {
    throw Error(
        fmt::format("{} does not exist: name a SentencePiece model, or give --vocab-size "
                    "to train one there",
                    job.tokenizer));
  }
  run_together(ranks, [&] {
    if (!missing && job.sample_bytes != PrepareJob().sample_bytes) {
      throw Error(fmt::format("--sample-bytes has no effect: {} is there", job.tokenizer));
    }
    if (!missing && job.vocab_size > 0) {
      const int64_t size = Tokenizer(job.tokenizer).vocab_size();
      if (size != job.vocab_size) {
        throw Error(fmt::format("--vocab-size is {}, but {} is there and has {} pieces",
                                job.vocab_size, job.tokenizer, size));
      }
    }
    if (!fs::exists(out)) require_used(job.fields, expand_inputs(job.inputs).files, "--");
  });
  run_together(ranks, [&] {
    if (missing && world.rank() == 0) {
      refuse_left_out(expand_inputs(job.inputs), job.max_bad_fraction);
      train_tokenizer(job.inputs, job.vocab_size, job.sample_bytes, job.tokenizer, job.fields);
    }
  });
  PrepareOptions options;
  options.inputs = job.inputs;
  options.tokenizer = job.tokenizer;
  options.out = out;
  options.fields = job.fields;
  options.max_bad_fraction = job.max_bad_fraction;
  options.verify = job.verify;
  options.ranks = ranks;
  const PrepareReport report = prepare_tokens(options);
  const double rate = static_cast<double>(report.info.num_tokens) / report.seconds;
  if (world.rank() == 0) {
    if (job.json) {
      std::cout << with_speed(figures_of(report), report.info.num_tokens, report.seconds,
                              report.already_complete)
                       .dump()
                << std::endl;
    }
    log_info(report.already_complete
                 ? fmt::format("{} is complete", job.run.out)
                 : fmt::format("{}: {} documents ({} left out), {} tokens, {} tokens/s",
                               job.run.out, report.info.num_documents, report.bad.bad(),
                               human_count(static_cast<double>(report.info.num_tokens)),
                               human_count(rate)));
  }
  return kExitDone;
}

}  // namespace

void add_prepare_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand("prepare", "Turn text into token files");
  auto job = std::make_shared<PrepareJob>();
  auto* experiment = sub->add_option(
      "experiment", job->run.experiment,
      "Experiment file: prepares the tokenizer and the token files of a run folder");
  sub->add_option("--out", job->run.out, "Run folder, or with --input the token file to write")
      ->required();
  sub->add_option("--set", job->run.overrides, "Override a key of the experiment (repeatable)")
      ->allow_extra_args(false)
      ->needs(experiment);
  auto* input =
      sub->add_option("--input", job->inputs,
                      "Text without an experiment: .jsonl, .txt, also .gz and .zst; files, "
                      "folders, globs, @FILE for a list of them")
          ->excludes(experiment);
  sub->add_option("--tokenizer", job->tokenizer, "SentencePiece model to use (or to train)")
      ->needs(input);
  sub->add_option("--vocab-size", job->vocab_size, "Train the tokenizer with so many pieces")
      ->needs(input);
  sub->add_option("--sample-bytes", job->sample_bytes, "Text that the tokenizer is trained on")
      ->capture_default_str()
      ->needs(input);
  sub->add_option("--text-key", job->fields.text, "Field of a JSON line that is the text")
      ->capture_default_str()
      ->needs(input);
  sub->add_option("--domain-key", job->fields.domain, "Field that is its domain; empty: none")
      ->capture_default_str()
      ->needs(input);
  sub->add_flag("--lines", job->fields.lines, "Each line of a .txt is a document")->needs(input);
  sub->add_option("--max-bad-fraction", job->max_bad_fraction,
                  "Tolerated share of broken or empty documents, and of files that are not read")
      ->capture_default_str()
      ->needs(input);
  sub->add_flag("--verify", job->verify,
                "Read the text of complete tokens again, though it looks as it did");
  add_stop_options(*sub, job->run.stop);
  sub->add_flag("--json", job->json, "Print the figures as one JSON line, those of a run by split");
  sub->footer(
      "  mpirun -n 4 smalltalk prepare jobs/tiny.toml --out RUN\n"
      "  smalltalk prepare --input 'text/*.jsonl.zst' --tokenizer t.model "
      "--vocab-size 32000 --out tokens.h5");
  sub->callback([&run, job] {
    run = [job] {
      if (job->run.experiment.empty() == job->inputs.empty()) {
        std::cerr << "prepare: give an experiment file or --input, not both and not neither\n";
        return kExitUsage;
      }
      if (!job->inputs.empty()) {
        return run_watched(job->run.stop, "prepare", "", [&](Session& session, const auto&) {
          return prepare_inputs(*job, session);
        });
      }
      return run_stage(job->run, Phase::prepare, false,
                       [job](OpenedRun& opened) { prepare_run(*job, opened); });
    };
  });
}

}  // namespace smalltalk
