#include "smalltalk/mixture/routing/scoring.hpp"

#include "mixture/routing/scoring_notes.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/sampler.hpp"

namespace smalltalk {

RowScores::RowScores(int64_t num_models, int64_t num_rows, int64_t width, ScoringNotes* notes)
    : num_models_(num_models),
      num_rows_(num_rows),
      width_(width),
      notes_(notes),
      values_(static_cast<size_t>(num_models * num_rows * width)) {
  if (notes_ != nullptr) done_ = notes_->read(num_models_, num_rows_, width_, values_);
}

void RowScores::fill(const ModelsView& models, const RowSource& rows, int64_t last,
                     const Reduce& reduce, const Merging& merging) {
  ST_CHECK(models.size() == num_models_ && last <= num_rows_);
  const auto take = [&](const LogProbs& piece) {
    for (int64_t model = 0; model < num_models_; ++model) {
      for (int64_t i = 0; i < piece.count; ++i) {
        const int64_t row = piece.first + i;
        reduce(row, piece.row(model, i), piece.greedy(model, i), numbers_of(model, row));
      }
    }
    advance(piece.first + piece.count);
  };
  visit_log_probs(models, rows, done_, last, take, merging);
}

void RowScores::fill(const Transformer& model, const RowSource& rows, const ReduceRouting& reduce) {
  ST_CHECK(num_models_ == 1);
  visit_routing(model, rows, done_, num_rows_, [&](int64_t row, const RowRouting& routing) {
    reduce(row, routing, numbers_of(0, row));
    advance(row + 1);
  });
}

std::span<double> RowScores::numbers_of(int64_t model, int64_t row) {
  const auto place = static_cast<size_t>((model * num_rows_ + row) * width_);
  return std::span(values_).subspan(place, static_cast<size_t>(width_));
}

void RowScores::advance(int64_t done) {
  done_ = done;
  const bool stop = stop_requested() && done_ < num_rows_;
  if (notes_ != nullptr && (stop || notes_->due())) {
    notes_->write(num_models_, num_rows_, width_, done_, values_);
  }
  if (stop) throw Stopped();
}

std::vector<float> score_sequences(const ModelsView& routers,
                                   const std::shared_ptr<const TokenFile>& tokens,
                                   std::span<const uint64_t> ids, int64_t seq_length,
                                   std::span<const int64_t> prefixes, ScoringNotes* notes) {
  if (ids.empty()) return {};  // to ordered_rows() no ids would mean all
  RowScores scores(routers.size(), std::ssize(ids), std::ssize(prefixes), notes);
  scores.fill(routers, ordered_rows(tokens, {ids.begin(), ids.end()}, seq_length, prefixes.back()),
              std::ssize(ids), [&](int64_t, auto log_probs, auto, std::span<double> sums) {
                sum_prefixes(log_probs, prefixes, sums);
              });
  return {scores.values().begin(), scores.values().end()};
}

}  // namespace smalltalk
