// Drawing the next token from a model's logits.
#pragma once

#include <cstdint>
#include <span>

namespace smalltalk {

// As transformers applies them: temperature, then top-k, then top-p.
struct SamplingOptions {
  double temperature = 1;  // logits are divided by it; 0: always the likeliest token
  int64_t top_k = 0;       // only the k likeliest tokens; 0: all
  double top_p = 1;        // only the likeliest tokens that have this probability together
};

// Error naming the option: a temperature or top_k below 0, a top_p outside (0, 1].
void check_sampling(const SamplingOptions& options);

// The token where the cumulative probability passes `uniform`, in [0, 1), tokens being ordered by
// descending logit, those of equal logits by id. REQUIRES finite logits (else Error).
int64_t sample_token(std::span<const float> logits, const SamplingOptions& options, double uniform);

}  // namespace smalltalk
