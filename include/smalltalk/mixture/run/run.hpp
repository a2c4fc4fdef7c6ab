// A run as everything that works on it sees it: what is asked for, where it lies, what it reads;
// and the right to write into its folder.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/write_lock.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk {

struct Run {
  Experiment experiment;
  RunLayout layout;
  std::shared_ptr<const TokenFile> tokens;  // of the training text, once open_tokens() was called
  Provenance provenance;                    // what everything after the tokens is made from
};

// The run of an experiment file with overrides ("section.key=value") in a folder, which need not be
// there yet. Writes nothing.
Run load_run(const std::filesystem::path& experiment, const std::vector<std::string>& overrides,
             const std::filesystem::path& folder);
// The run that a folder holds. Error: there is no experiment.toml in it.
Run open_run(const std::filesystem::path& folder);

// Error: the run has no mixture.
void require_mixture(const Run& run);

// The right to make tokens, routers and shards of a run, which one job at a time has. Held by rank
// 0. Error: another job has it, and keeps it. Collective.
std::unique_ptr<WriteLock> lock_stages(const Run& run, const HostCollectives& ranks,
                                       double patience_seconds = 3);

}  // namespace smalltalk
