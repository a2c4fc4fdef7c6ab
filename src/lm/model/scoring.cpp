#include "smalltalk/lm/model/scoring.hpp"

#include <algorithm>
#include <vector>

#include "lm/model/check_tokens.hpp"
#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

int64_t ModelsView::size() const { return models_->num_models; }

void visit_log_probs(const ModelsView& models, const RowSource& rows, int64_t first, int64_t last,
                     const std::function<void(const LogProbs& piece)>& visit,
                     const Merging& merging) {
  if (rows.row_tokens < 2) throw Error("a row needs at least 2 tokens to be scored");
  const int64_t length = rows.row_tokens - 1;
  Engine& engine = *models.impl().engine;
  const int64_t at_once = engine.rows_at_once(rows.row_tokens);
  std::vector<int64_t> tokens;
  std::vector<float> values;
  std::vector<uint8_t> greedy;
  for (int64_t next = first; next < last; next += at_once) {
    const int64_t count = std::min(at_once, last - next);
    tokens.resize(static_cast<size_t>(count * rows.row_tokens));
    values.resize(static_cast<size_t>(models.size() * count * length));
    greedy.resize(values.size());
    rows.read(next, count, tokens);
    check_tokens(tokens, count, rows.row_tokens, models.impl().config.vocab_size, next);
    engine.compute_log_probs(tokens, count, rows.row_tokens, values, greedy, merging);
    visit({next, count, length, values, greedy});
  }
}

void sum_prefixes(std::span<const float> log_probs, std::span<const int64_t> prefixes,
                  std::span<double> sums) {
  ST_CHECK(sums.size() == prefixes.size());
  double sum = 0;
  int64_t prefix = 1;
  for (size_t j = 0; j < prefixes.size(); ++j) {
    ST_CHECK(prefix <= prefixes[j] && prefixes[j] <= std::ssize(log_probs) + 1);
    for (; prefix < prefixes[j]; ++prefix) sum += log_probs[static_cast<size_t>(prefix - 1)];
    sums[j] = sum;
  }
}

double log_likelihood(const Transformer& model, std::span<const int64_t> tokens) {
  const RowSource row{std::ssize(tokens), [&](int64_t, int64_t, std::span<int64_t> out) {
                        std::ranges::copy(tokens, out.begin());
                      }};
  double sum = 0;
  visit_log_probs(model, row, 0, 1, [&](const LogProbs& of_row) {
    sum_prefixes(of_row.values, {&row.row_tokens, 1}, {&sum, 1});
  });
  return sum;
}

}  // namespace smalltalk
