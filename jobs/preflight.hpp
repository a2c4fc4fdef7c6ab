// What would fail later, found before anything is computed: by `launch`, with or without --dry-run,
// and by `prepare`.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/comm/rank_plan.hpp"
#include "smalltalk/data/documents.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// Error naming the keys: text that is not there or too little, keys of [data] that cannot act on
// it, a tokenizer of another size than data.vocab_size. A warning for what may fail: a tokenizer
// that cannot be exported, probably too little text.
void require_runnable(const Run& run);
// Error: the plan's groups cannot cut an expert's batch into micro-batches.
void require_batches(const Experiment& experiment, const RankPlan& plan);
// Error: a group cannot cut Lory's experts into slices of one size. Before anything is estimated.
void require_slices(const Experiment& experiment, const RankPlan& plan);

// Error naming `prefix` ("data." or "--") and the field: one that was set, but that no file has a
// use for, as "lines" without any .txt. A line of log if the lines of a .txt may be meant as
// documents.
void require_used(const DocumentFields& fields, const std::vector<std::filesystem::path>& files,
                  const std::string& prefix);

}  // namespace smalltalk
