// What may change between two starts on a run folder. Each stage was made by some keys of the
// experiment, and from the content of the stages before it: a key may change as long as nothing
// that is there was made by it. The folder's experiment.toml always says what all that is there was
// made by; text is not told by its paths but by its content, when tokens are asked for.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

// A key that differs from the folder's, and the stages there that it would spoil.
struct Change {
  KeyDifference key;
  std::vector<std::string> spoils;  // "routers", "experts/2", as stages are called
};

// A model that is there and shall be trained by another schedule than the folder's, from a step
// until which the rates are the same.
struct TrainedOn {
  std::string unit;
  int64_t from = 0, to = 0;
};

struct Changes {
  std::vector<Change> keys;
  std::vector<TrainedOn> trained_on;

  bool none() const { return keys.empty(); }
  bool spoil() const;
};

// Of `run` against the experiment that its folder holds; none if it holds none.
Changes changes_of(const Run& run);
// As a table of key, value there, value here and what comes of it; and who is trained on.
std::string describe(const Changes& changes);

// Error: a change would spoil something; names each key and all that it spoils.
void require_compatible(const Run& run);
// Proves that the run folder can be written to and that nothing in it is spoilt; says what is kept,
// takes the mark of completeness from models that are trained on and removes what was evaluated of
// them, and writes experiment.toml. Of jobs that make tokens, routers or shards (`makes_stages`)
// one at a time has the right to, which is returned; the others need a folder that one of them has
// claimed. Collective.
std::unique_ptr<WriteLock> claim_run_folder(const Run& run, const HostCollectives& ranks,
                                            bool makes_stages);

}  // namespace smalltalk
