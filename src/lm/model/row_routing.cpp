#include "smalltalk/lm/model/row_routing.hpp"

#include <algorithm>
#include <functional>

#include "lm/model/check_tokens.hpp"
#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

void visit_routing(const Transformer& model, const RowSource& rows, int64_t first, int64_t last,
                   const std::function<void(int64_t row, const RowRouting& routing)>& visit) {
  if (!model.config().merges_experts()) throw Error("the model merges no experts");
  if (rows.row_tokens < 2) throw Error("a row needs at least 2 tokens to be scored");
  Engine& engine = *model.impl().engine;
  const int64_t at_once = engine.rows_at_once(rows.row_tokens);
  std::vector<int64_t> tokens;
  for (int64_t next = first; next < last; next += at_once) {
    const int64_t count = std::min(at_once, last - next);
    tokens.resize(static_cast<size_t>(count * rows.row_tokens));
    rows.read(next, count, tokens);
    check_tokens(tokens, count, rows.row_tokens, model.config().vocab_size, next);
    const std::vector<RowRouting> found = engine.routing(tokens, count, rows.row_tokens);
    for (int64_t i = 0; i < count; ++i) visit(next + i, found[static_cast<size_t>(i)]);
  }
}

std::vector<std::vector<double>> mean_routing_weights(const Transformer& model,
                                                      const RowSource& rows, int64_t first,
                                                      int64_t last) {
  const int64_t experts = model.config().merged_experts;
  const int64_t layers = model.config().num_merging_layers();
  std::vector<std::vector<double>> means(static_cast<size_t>(layers),
                                         std::vector<double>(static_cast<size_t>(experts)));
  int64_t count = 0;
  visit_routing(model, rows, first, last, [&](int64_t, const RowRouting& row) {
    for (int64_t s = 0; s < std::ssize(row.segments); ++s) {
      if (row.segments[static_cast<size_t>(s)].first) continue;
      ++count;
      for (int64_t layer = 0; layer < layers; ++layer) {
        std::vector<double>& mean = means[static_cast<size_t>(layer)];
        std::ranges::transform(mean, row.of(layer, s, experts), mean.begin(), std::plus<double>());
      }
    }
  });
  for (std::vector<double>& mean : means) {
    for (double& weight : mean) {
      weight = count > 0 ? weight / static_cast<double>(count) : 1 / static_cast<double>(experts);
    }
  }
  return means;
}

}  // namespace smalltalk
