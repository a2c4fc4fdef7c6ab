// A sweep: runs that differ from one experiment in some keys, and the tables that set their models
// side by side. Read from a TOML file:
//
//   experiment = "jobs/quickstart.toml"      # relative to the working directory
//   set = ["baselines.dense_large_batch=true"]      # of all runs, as after --set
//   seeds = [1, 2, 3]
//
//   [[run]]
//   name = "e8"
//   set = ["mixture.experts=8"]
//   seeds = [1]                              # in place of those above
//
//   [[data]]                                 # beside each run's own validation and test split
//   name = "news"
//   files = ["news.jsonl"]
//
//   [[table]]
//   name = "experts"
//   title = "Does the gain grow with E?"
//   data = "news"                            # all rows are measured on it; default: test
//   rows = [{ run = ["main", "e8"], model = ["mixture", "dense"] }]
//   reference = { run = "main", model = "dense" }
//
// A row may also have rule, prefix, step (of checkpoints, which expert.keep_every keeps) and label.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace smalltalk {

struct SweepRun {
  std::string name;
  std::vector<std::string> overrides;  // "section.key=value", those of all runs first
  std::vector<uint64_t> seeds;
};

struct SweepData {
  std::string name;
  std::vector<std::string> files;
};

// Rows of the runs' comparisons: all that agree with one of each list.
struct RowChoice {
  std::vector<std::string> runs;
  std::vector<std::string> models;  // none: all
  std::vector<std::string> rules;   // none: as the model is trained to be used
  std::vector<int64_t> prefixes;    // none: the run's own
  std::vector<int64_t> steps;       // of checkpoints; none: the trained models
  std::string label;                // instead of run and model
};

struct SweepTable {
  std::string name, title;
  std::string data = "test";  // or "validation" or the name of a SweepData
  std::vector<RowChoice> rows;
  // Where several rows agree with it, the one of a row's own run, prefix and step.
  RowChoice reference;
  std::vector<uint64_t> seeds;  // that all of its runs have: differences are taken seed by seed
};

struct Sweep {
  std::filesystem::path experiment;
  std::vector<SweepRun> runs;
  std::vector<SweepData> data;
  std::vector<SweepTable> tables;

  // What the tables need of a run.
  struct Needs {
    std::map<std::string, std::set<int64_t>> data;  // and the checkpoints that are shown on it
    std::set<int64_t> prefixes;
  };
  Needs needs_of(const std::string& run) const;
};

// Errors name the file and the key: not readable, unknown key, wrong type, a name twice, a table
// of data that there is not, with a run that there is not, or whose runs have no seed in common.
Sweep load_sweep(const std::filesystem::path& file);

}  // namespace smalltalk
