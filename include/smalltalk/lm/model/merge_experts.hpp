// A model that merges experts (ModelConfig::merged_experts) as a plain one.
#pragma once

#include <vector>

#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

// Merges the experts for good, in each layer that merges with weights of its own [L][E], as those
// of mean_routing_weights(): the result reads every token with them. On the model's device.
Transformer merge_experts(const Transformer& model,
                          const std::vector<std::vector<double>>& weights);

}  // namespace smalltalk
