// What a model makes of a text: its hidden states behind the last norm, which the output projection
// reads. H numbers a token.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

// Hands out, for rows 0 .. lengths.size() - 1 in order, the sum [H] of the hidden states of the
// row's first lengths[row] tokens: at most row_tokens - 1, as a row's last token is only a target.
// What is behind them, such as padding, changes nothing. A row's bits follow from its tokens,
// row_tokens and the weights, as those of visit_log_probs(); where experts are merged, they are
// weighed as there. Errors: rows of less than 2 tokens; ids outside [0, V), naming the row; what
// `visit` throws.
void visit_hidden_sums(const Transformer& model, const RowSource& rows,
                       std::span<const int64_t> lengths,
                       const std::function<void(int64_t row, std::span<const double> sum)>& visit);

}  // namespace smalltalk
