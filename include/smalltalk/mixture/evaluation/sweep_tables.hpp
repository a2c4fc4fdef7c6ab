// The tables of a sweep: rows of its runs' comparisons, side by side, over several seeds.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/sweep.hpp"
#include "smalltalk/mixture/evaluation/bootstrap.hpp"
#include "smalltalk/mixture/evaluation/comparison.hpp"

namespace smalltalk {

struct TrainedRun {
  std::string name;  // without the seed
  Run run;
  std::vector<TrainUnit> units;

  uint64_t seed() const { return run.experiment.seed; }
};

// How each of them is compared on its data: as the tables need it, and as `compare` does by itself.
CompareOptions sweep_comparison(const Sweep& sweep, const TrainedRun& trained,
                                const std::string& data);

struct SweepRow {
  std::string run, label;                // label: empty, or what to show in place of run and model
  ComparedRow figures;                   // means over the seeds; perplexity: exp of the mean loss
  double train_flops = 0;                // of all that its model took, of one seed
  std::vector<double> perplexities;      // [seeds]
  std::vector<double> seed_differences;  // [seeds] nats per token
  bool is_reference = false;
  std::string reference;  // the row that it is compared with: "main: dense"
};

struct FilledTable {
  SweepTable table;
  int64_t num_sequences = 0, num_documents = 0;
  std::vector<SweepRow> rows;
};

// REQUIRES the runs to be complete, the cells of their comparisons included. The difference of a
// row is the mean over the seeds, its interval that of drawing the documents anew. Error: a run
// without such a row, runs that were not measured on the same sequences, a reference that is none
// or several.
std::vector<FilledTable> fill_tables(const Sweep& sweep, const std::vector<TrainedRun>& runs);

// Seconds that training took, routers and sharding included, by run and model: means over seeds.
std::string sweep_seconds(const std::vector<TrainedRun>& runs);
std::string sweep_json(const std::vector<FilledTable>& tables);
std::string sweep_markdown(const std::vector<FilledTable>& tables);

}  // namespace smalltalk
