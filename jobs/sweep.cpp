// sweep: many runs that differ in some keys, and tables that set them side by side. A run is
// trained by one rank, alone from tokens to results, so that what comes out does not depend on how
// many ranks share the runs.
#include "smalltalk/core/experiment/sweep.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iostream>
#include <set>

#include "jobs.hpp"
#include "preflight.hpp"
#include "run_job.hpp"
#include "run_stages.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/evaluation/comparison.hpp"
#include "smalltalk/mixture/evaluation/sweep_runs.hpp"
#include "smalltalk/mixture/evaluation/sweep_tables.hpp"
#include "smalltalk/mixture/report/report.hpp"
#include "smalltalk/mixture/run/changes.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

struct SweepJob {
  std::string file, out;
  StopOptions stop;
  WorkPart part;
  bool list = false;
};

void print_runs(const Sweep& sweep, const std::vector<PlannedRun>& runs) {
  for (const PlannedRun& planned : runs) {
    std::string command = fmt::format("smalltalk launch {}", sweep.experiment.string());
    for (const std::string& text : planned.overrides) command += " --set '" + text + "'";
    std::cout << fmt::format("{:8} {} --out {}\n", planned.complete() ? "done" : "", command,
                             planned.run.layout.root.string());
  }
  std::cout << std::flush;
}

// All that tokens are made of.
std::string token_key(const DataConfig& data) {
  const std::string packing =
      data.packing == Packing::documents ? fmt::format(" packed into {}", data.seq_length) : "";
  return hash_text(fmt::format("{} | {} | {} | {} {} {} {} {} {}{}", fmt::join(data.train, " "),
                               fmt::join(data.validation, " "), fmt::join(data.test, " "),
                               data.tokenizer, data.vocab_size, data.tokenizer_sample_bytes,
                               data.text_key, data.domain_key, data.lines, packing));
}

// Makes the tokens of all runs, those of the same text once, and links them into the runs' folders.
// Collective.
void share_tokens(const Sweep& sweep, const std::vector<PlannedRun>& runs,
                  const SweepLayout& layout, Communicator& world) {
  const HostCollectives ranks = host_collectives(world);
  std::set<std::string> prepared;
  for (const PlannedRun& planned : runs) {
    const RunLayout& its = planned.run.layout;
    Run run = planned.run;
    const std::string key = token_key(run.experiment.data);
    run.layout.root = layout.tokens_of(key);
    if (prepared.insert(key).second) {
      // Elements of an array begin together: all but one wait for that one.
      const auto lock = lock_stages(run, ranks, 3600);
      prepare_tokens_of(run, ranks);
      for (const SweepData& data : sweep.data) prepare_text(run, data.name, data.files, ranks);
      world.barrier();
    }
    if (world.rank() != 0) continue;
    create_folder(its.tokens_folder());
    std::vector<fs::path> files = tokens_stage(its).marks;
    for (const SweepData& data : sweep.data) files.push_back(its.tokens(data.name));
    for (const fs::path& file : files) {
      if (fs::exists(file)) continue;
      write_atomically(file, [&](const fs::path& temporary) {
        const fs::path from = run.layout.tokens_folder() / file.filename();
        std::error_code error;
        fs::remove(temporary, error);
        fs::create_hard_link(from, temporary, error);
        if (error) fs::copy_file(from, temporary);
      });
    }
  }
  world.barrier();
}

// Makes the orders of those runs that read their documents in one. Collective.
void make_orders(const std::vector<PlannedRun>& runs, Communicator& world) {
  for (const PlannedRun& planned : runs) {
    if (planned.run.experiment.data.order == TextOrder::file) continue;
    const auto lock = lock_stages(planned.run, host_collectives(world), 3600);
    order_documents(planned.run, world, {}, true);
  }
}

// REQUIRES the run's tokens to be open.
TrainedRun trained_run(const PlannedRun& planned, const Run& run) {
  return {planned.name, run, units_of(run)};
}

TrainedRun trained_run(const PlannedRun& planned) {
  Run run = planned.run;
  open_tokens(run);
  return trained_run(planned, run);
}

// From tokens to the run's own comparisons and page.
void complete_run(const Sweep& sweep, const PlannedRun& planned, Session& session,
                  Communicator& alone, const std::string& start) {
  clear_ledger();
  set_ledger_phase(Phase::start);
  Run run = planned.run;
  configure_runtime(run.experiment.device, session.local_rank());
  const HostCollectives ranks = host_collectives(alone);
  const auto lock = claim_run_folder(run, ranks, Claim::makes_stages);
  count_in_ledger(run.layout.ledger_folder(), start, 0, [&] {
    run_stages(run, plan_of(run, {0}), alone, start);
    set_ledger_phase(Phase::compare);
    const TrainedRun trained = trained_run(planned, run);
    for (const auto& [data, steps] : planned.needs.data) {
      require_split(run, data);
      const CompareOptions options = sweep_comparison(sweep, trained, data);
      const auto cells = compare_cells(run.experiment, trained.units, options);
      compute_cells(run, fmt::format("{}-{}", start, data), cells);
      write_comparison(run, trained.units, options);
    }
  });
}

void write_tables(const Sweep& sweep, const std::vector<PlannedRun>& planned_runs,
                  const SweepLayout& layout) {
  std::vector<TrainedRun> runs;
  for (const PlannedRun& planned : planned_runs) runs.push_back(trained_run(planned));
  const std::vector<FilledTable> tables = fill_tables(sweep, runs);
  write_text_atomically(layout.tables(), sweep_json(tables));
  write_text_atomically(layout.markdown(), sweep_markdown(tables));
  write_text_atomically(layout.seconds(), sweep_seconds(runs));
  std::cout << sweep_markdown(tables) << std::flush;
  log_info(fmt::format("wrote {}, {} and {}", layout.tables().string(), layout.markdown().string(),
                       write_report(layout.root).string()));
}

void require_known_models(const Sweep& sweep, const std::string& file) {
  for (const SweepTable& table : sweep.tables) {
    std::vector<RowChoice> choices = table.rows;
    choices.push_back(table.reference);
    for (const RowChoice& choice : choices) {
      for (const std::string& model : choice.models) {
        if (find_kind(model) != nullptr) continue;
        throw Error(fmt::format("{}: table {}: there is no model '{}'", file, table.name,
                                printable(model)));
      }
    }
  }
}

// What would fail later in one of the runs, found before any begins.
void require_runs(const Sweep& sweep, const std::vector<PlannedRun>& runs,
                  const SweepLayout& layout) {
  std::set<std::string> looked_at;
  for (const PlannedRun& planned : runs) {
    Run run = planned.run;
    try {
      require_compatible(run);
      const Experiment& experiment = run.experiment;
      const std::string tokens = token_key(experiment.data);
      run.layout.root = layout.tokens_of(tokens);
      const std::string needs = fmt::format("{} {} {}", tokens, experiment.data.seq_length,
                                            experiment.mixture.sequences_per_round);
      if (looked_at.insert(needs).second) require_runnable(run);
    } catch (const Error& error) {
      throw Error(fmt::format("run {}: {}", planned.name, error.what()));
    }
    for (const SweepData& data : sweep.data) {
      if (!fs::exists(run.layout.tokens(data.name))) expand_inputs(data.files);
    }
  }
}

int run_sweep(const SweepJob& job, Session& session, const std::string& start) {
  require_part(job.part);
  const Sweep sweep = load_sweep(job.file);
  const SweepLayout layout{job.out};
  // What is wrong is not found out after hours.
  require_known_models(sweep, job.file);
  std::vector<PlannedRun> runs =
      plan_runs(sweep, layout, [](const Run& run) { plan_of(run, {0}); });
  Communicator& world = session.world();
  if (job.list) {
    if (world.rank() == 0) print_runs(sweep, runs);
    require_runs(sweep, runs, layout);
    return kExitDone;
  }
  require_runs(sweep, runs, layout);
  require_writable(layout.root);
  set_ledger_phase(Phase::prepare);
  share_tokens(sweep, runs, layout, world);
  set_ledger_phase(Phase::order);
  make_orders(runs, world);
  for (PlannedRun& planned : runs) {
    planned.units = trained_run(planned).units;
    require_steps(planned);
  }
  // Longest first, so that the last ones are short.
  std::ranges::stable_sort(runs, std::greater(), &PlannedRun::cost);

  // From here on nobody talks to anybody.
  Communicator alone = world.split(world.rank(), 0, "run");
  set_log_muted(false);
  std::vector<Work> work;
  std::vector<std::string> failed;
  for (const PlannedRun& planned : runs) {
    const auto complete = [&] {
      set_log_prefix("sweep " + planned.folder());
      try {
        complete_run(sweep, planned, session, alone, start);
      } catch (const Error& error) {  // which is no reason to end the others
        log_error(error.what());
        failed.push_back(planned.folder());
        return;
      }
      const auto done = std::ranges::count_if(runs, &PlannedRun::complete);
      log_info(fmt::format("{} of {} runs are complete", done, runs.size()));
    };
    work.push_back({planned.folder(), [&] { return planned.complete(); }, complete});
  }
  const bool last = work_off(RunLayout{layout.root}, start, work, job.part);
  set_log_prefix("sweep");
  if (last) write_tables(sweep, runs, layout);
  if (failed.empty()) return kExitDone;
  log_warning(fmt::format("{} failed: put it right, or take it out of the sweep's file",
                          fmt::join(failed, ", ")));
  return kExitFailure;
}

}  // namespace

void add_sweep_job(CLI::App& app, JobRun& run) {
  auto* sub = app.add_subcommand(
      "sweep", "Train and compare many runs: one file of runs and tables, one page of answers");
  auto job = std::make_shared<SweepJob>();
  sub->add_option("file", job->file, "Sweep file (TOML): an experiment, what varies, the tables")
      ->required();
  sub->add_option("--out", job->out, "Folder of the sweep; the same folder again continues it")
      ->required();
  sub->add_flag(
      "--list", job->list,
      "Print the runs, which are done, and the launch command of each, then say what would "
      "fail; compute nothing");
  add_part_options(*sub, job->part, "tables");
  add_stop_options(*sub, job->stop);
  sub->footer(
      "Each run lies in OUT/runs/NAME-seed-SEED, a run folder like those of launch, and is "
      "trained\n"
      "by one rank; tokens of the same text are made once. A run too large for one rank may be\n"
      "launched before, by the command that --list prints. When all runs are complete the tables\n"
      "are printed and written to OUT/sweep.md, sweep.json and report.html, the same for any\n"
      "number of ranks and parts. A run that fails leaves the others alone; the sweep then ends\n"
      "with an error and without tables, and goes on with that run when it is started again.\n"
      "  mpirun -n 2 smalltalk sweep jobs/sweep-small.toml --out runs/sweep-small");
  sub->callback([&run, job] {
    run = [job] {
      return run_watched(job->stop, "sweep", job->list ? "" : job->out,
                         [&](Session& session, const std::string& start) {
                           return run_sweep(*job, session, start);
                         });
    };
  });
}

}  // namespace smalltalk
