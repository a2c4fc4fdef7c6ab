#include "smalltalk/lm/model/hidden_states.hpp"

#include <algorithm>
#include <vector>

#include "lm/model/check_tokens.hpp"
#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

void visit_hidden_sums(const Transformer& model, const RowSource& rows,
                       std::span<const int64_t> lengths,
                       const std::function<void(int64_t row, std::span<const double> sum)>& visit) {
  if (rows.row_tokens < 2) throw Error("a row needs at least 2 tokens to be scored");
  ST_CHECK(std::ranges::all_of(
      lengths, [&](int64_t length) { return length >= 0 && length < rows.row_tokens; }));
  Engine& engine = *model.impl().engine;
  const int64_t at_once = engine.rows_at_once(rows.row_tokens);
  const auto hidden = static_cast<size_t>(model.config().hidden_size);
  std::vector<int64_t> tokens;
  std::vector<double> sums;
  for (int64_t next = 0; next < std::ssize(lengths); next += at_once) {
    const int64_t count = std::min(at_once, std::ssize(lengths) - next);
    const auto its_lengths = lengths.subspan(static_cast<size_t>(next), static_cast<size_t>(count));
    tokens.resize(static_cast<size_t>(count * rows.row_tokens));
    sums.resize(static_cast<size_t>(count) * hidden);
    rows.read(next, count, tokens);
    check_tokens(tokens, count, rows.row_tokens, model.config().vocab_size, next);
    engine.sum_hidden_states(tokens, count, rows.row_tokens, its_lengths, sums);
    for (int64_t i = 0; i < count; ++i) {
      visit(next + i, std::span(sums).subspan(static_cast<size_t>(i) * hidden, hidden));
    }
  }
}

}  // namespace smalltalk
