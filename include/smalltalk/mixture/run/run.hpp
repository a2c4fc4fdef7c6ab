// A run as everything that works on it sees it: what is asked for, where it lies, what it reads.
#pragma once

#include <filesystem>
#include <memory>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk {

struct Run {
  Experiment experiment;
  RunLayout layout;
  std::shared_ptr<const TokenFile> tokens;  // of the training text, once they were opened
  Provenance provenance;                    // what everything after the tokens is made from
};

// The run that a folder holds. Its tokens are not open. Error: there is no experiment.toml in it.
Run open_run(const std::filesystem::path& folder);

}  // namespace smalltalk
