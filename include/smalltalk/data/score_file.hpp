// Per-sequence figures in HDF5: a dataset `/scores` float32 [N, E] with provenance attributes. The
// routers' prefix scores, and (as E = 2 columns) a model's log-likelihoods in evaluation. Any
// program may write such a file: without an attribute `format` it needs no checksums.
#pragma once

#include <filesystem>
#include <memory>

#include "smalltalk/core/assignment/score_matrix.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/data/shard_file.hpp"

namespace smalltalk {

void write_scores(const std::filesystem::path& path, const ScoreMatrix& scores,
                  const Provenance& provenance);
ScoreMatrix read_scores(const std::filesystem::path& path, Provenance* provenance = nullptr);

// Scores that need not fit into memory.
class ScoreFile {
 public:
  // Errors: missing, not a score file, /scores not float32 [N, E] with 1 <= E <= 65535.
  explicit ScoreFile(const std::filesystem::path& path);
  ~ScoreFile();
  ScoreFile(ScoreFile&&) noexcept;

  int64_t num_sequences() const;
  int64_t num_experts() const;
  const Provenance& provenance() const;

  // Rows [first, first + count) as one block, verified, valid as long as this object. Mapped where
  // /scores is contiguous and aligned, as the suite writes it: then nothing is copied, and any
  // number of threads may ask. Else they are read into memory that this object keeps, one thread
  // at a time. REQUIRES the rows to exist (else Error). Error: damaged.
  LocalScores<float> rows(int64_t first, int64_t count) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Verifies all of an HDF5 file of the suite; what it is and holds, as JSON text, for `inspect`.
std::string describe_hdf5(const std::filesystem::path& path);

}  // namespace smalltalk
