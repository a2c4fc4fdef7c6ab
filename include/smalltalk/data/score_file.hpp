// Per-sequence figures in HDF5: a dataset `/scores` float32 [N, E] with provenance attributes. The
// routers' prefix scores, and (as E = 2 columns) a model's log-likelihoods in evaluation.
#pragma once

#include <filesystem>

#include "smalltalk/core/score_matrix.hpp"
#include "smalltalk/data/shard_file.hpp"

namespace smalltalk {

void write_scores(const std::filesystem::path& path, const ScoreMatrix& scores,
                  const Provenance& provenance);
ScoreMatrix read_scores(const std::filesystem::path& path, Provenance* provenance = nullptr);

// What an HDF5 file of the suite is and holds, as JSON text, for `inspect`.
std::string describe_hdf5(const std::filesystem::path& path);

}  // namespace smalltalk
