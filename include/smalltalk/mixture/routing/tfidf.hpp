// The control that chooses experts by counts of words instead of routers: clusters of the training
// text (core/assignment/text_clusters.hpp), the shards that follow from them, and at evaluation the
// cluster nearest to a prefix. Clusters lie in RUN/tfidf under a name that follows from all that
// decides them, and are never written again; shards name them by hash.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/assign_sequences.hpp"
#include "smalltalk/core/assignment/text_clusters.hpp"
#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/data/shard_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

// Finds the clusters (rank 0), assigns all sequences in equal shares by their similarity, all of S
// tokens, and publishes tfidf_shards.h5; does nothing if that is there. Holds 4 E bytes for each
// sequence of a rank's slice. The same bytes for any number of ranks. Collective. Throws Stopped,
// on all ranks, if any of them was asked to stop.
void publish_tfidf_shards(const Run& run, const HostCollectives& world,
                          const AssignOptions& assign);

// The clusters by which the experts among these units find their sequences; none if there are no
// such experts. REQUIRES them to be complete. Error: they were trained on different shards; shards
// or clusters are gone or do not belong together.
std::optional<TextClusters> clusters_of_control(const RunLayout& layout,
                                                const std::vector<TrainUnit>& units);

// What finding `clusters` and assigning all training sequences by them took.
double sharding_flops(const Experiment& experiment, const TextClusters& clusters,
                      int64_t num_sequences);

// The nearest cluster of each sequence's first `prefix` tokens, ties by cluster.
Assignment nearest_clusters(const TextClusters& clusters, const TokenFile& tokens,
                            int64_t seq_length, int64_t prefix);

}  // namespace smalltalk
