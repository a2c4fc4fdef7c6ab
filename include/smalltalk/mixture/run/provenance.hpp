// What a mixture is made of, by hash, and whether it belongs together: each part names what it was
// made from, and nothing is evaluated that was put together from two runs or two states of one.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

struct MixtureParts {
  std::string experiment;  // experiment_hash()
  std::string tokenizer;
  std::string tokens;  // that the experts were trained on: the text may have grown since
  // The next three: empty without a mixture.
  std::string routers;  // of all their weights
  std::string shards;   // that the experts were trained on
  int64_t prefix_tokens = 0;
  std::map<std::string, std::string> models;  // weights of each unit, by its folder
};

// The hash of a model's weights, or of its checkpoint at `step`, as the file names it; of a file by
// another program, its bytes'.
std::string weights_hash(const std::filesystem::path& model, int64_t step = 0);
// Error: the checkpoint is not there, or is of another training than the model.
void require_checkpoint(const std::filesystem::path& model, int64_t step);
// Hashes of the routers' weights, as the score store knows them. [E]. Error: one is missing.
std::vector<std::string> router_hashes(const Run& run);
// Of all routers, as shard files name it. Error: one is missing.
std::string routers_hash(const Run& run);

// The parts of a run that is trained. Error naming the first part that does not belong to the
// others, and why: a model of another experiment, tokenizer or seed, experts of different shards,
// shards by other routers than those that are there.
MixtureParts require_one_mixture(const Run& run, const std::vector<TrainUnit>& units);

}  // namespace smalltalk
