// Scores of sequences of a token file. What takes long can be stopped, and goes on from its notes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/lm/model/row_routing.hpp"
#include "smalltalk/lm/model/scoring.hpp"

namespace smalltalk {

class ScoringNotes;  // src/mixture/routing/scoring_notes.hpp

// What is made of rows' log-probabilities, or of how a model weighs its experts for them, row by
// row: `width` numbers each, under each of R models.
class RowScores {
 public:
  // The first done() rows are those that the notes hold; without notes, none.
  RowScores(int64_t num_models, int64_t num_rows, int64_t width, ScoringNotes* notes = nullptr);

  // Makes a row's numbers [width] under one model, of what LogProbs has of the row.
  using Reduce = std::function<void(int64_t row, std::span<const float> log_probs,
                                    std::span<const uint8_t> greedy, std::span<double> scores)>;
  // Goes on up to, not including, row `last`. Throws Stopped if this process is asked to stop
  // before the last of all rows; the notes then hold what was done, as they do every minute.
  void fill(const ModelsView& models, const RowSource& rows, int64_t last, const Reduce& reduce,
            const Merging& merging = {});
  // The same of routing, of all rows under one model.
  using ReduceRouting =
      std::function<void(int64_t row, const RowRouting& routing, std::span<double> scores)>;
  void fill(const Transformer& model, const RowSource& rows, const ReduceRouting& reduce);

  int64_t done() const { return done_; }
  std::span<const double> values() const { return values_; }  // [R, num_rows, width]

 private:
  std::span<double> numbers_of(int64_t model, int64_t row);
  void advance(int64_t done);

  int64_t num_models_, num_rows_, width_;
  ScoringNotes* notes_;
  int64_t done_ = 0;
  std::vector<double> values_;
};

// Log-likelihoods in nats of the first prefixes[j] tokens of sequences under each router: [R,
// ids.size(), P]. Prefixes ascend; all of them are read off rows of the longest. A score does not
// depend on the other sequences. Throws Stopped as RowScores::fill() does.
std::vector<float> score_sequences(const ModelsView& routers,
                                   const std::shared_ptr<const TokenFile>& tokens,
                                   std::span<const uint64_t> ids, int64_t seq_length,
                                   std::span<const int64_t> prefixes,
                                   ScoringNotes* notes = nullptr);

}  // namespace smalltalk
