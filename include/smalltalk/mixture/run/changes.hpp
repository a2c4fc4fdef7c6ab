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
  std::vector<std::string> stuck;  // models that cannot be trained on, though no key says so

  bool none() const { return keys.empty() && trained_on.empty() && stuck.empty(); }
  bool spoil() const;
  bool spoils(const std::string& stage) const;
};

// Of `run` against the experiment that its folder holds; none if it holds none.
Changes changes_of(const Run& run);
// As a table of key, value there, value here and what comes of it; and who is trained on.
std::string describe(const Changes& changes);

// The changes. Error: one would spoil something; names each key and all that it spoils.
Changes require_compatible(const Run& run);
// Proves that the run folder can be written to and that nothing in it is spoilt; says what is kept,
// and writes experiment.toml. Of jobs that make tokens, routers or shards one at a time has the
// right to, which is returned; the others need a folder that one of them has claimed. Error: a job
// that only reads models would need them trained on. Collective.
enum class Claim { makes_stages, trains, reads };
std::unique_ptr<WriteLock> claim_run_folder(const Run& run, const HostCollectives& ranks,
                                            Claim claim);

}  // namespace smalltalk
