#include "smalltalk/lm/model/merge_experts.hpp"

#include <algorithm>
#include <map>
#include <string>

#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

Transformer merge_experts(const Transformer& model,
                          const std::vector<std::vector<double>>& weights) {
  const ModelConfig& config = model.config();
  if (!config.merges_experts()) throw Error("the model merges no experts");
  ST_CHECK(std::ssize(weights) == config.num_merging_layers());
  const ParameterLayout& layout = model.impl().layout;
  const std::vector<float> values = model.weights();
  auto plain = std::make_unique<Transformer::Impl>(config.dense(), model.impl().device);

  std::map<std::string, int64_t> offsets;
  for (const ParameterSpec& spec : layout.specs) offsets[spec.name] = spec.offset;
  std::vector<float> merged(static_cast<size_t>(plain->layout.total));
  for (const ParameterSpec& spec : plain->layout.specs) {
    const auto found = offsets.find(spec.name);
    if (found == offsets.end()) continue;  // merged below
    std::copy_n(values.begin() + found->second, spec.size, merged.begin() + spec.offset);
  }
  auto of_layer = weights.begin();
  std::vector<double> sum(static_cast<size_t>(layout.expert_stride));
  for (size_t i = 0; i < layout.layers.size(); ++i) {
    const LayerOffsets& from = layout.layers[i];
    if (!from.merges) continue;
    ST_CHECK(std::ssize(*of_layer) == config.merged_experts);
    std::ranges::fill(sum, 0.0);
    const float* expert = values.data() + from.gate_up;
    for (const double weight : *of_layer++) {
      for (size_t j = 0; j < sum.size(); ++j) sum[j] += weight * expert[j];
      expert += layout.expert_stride;
    }
    std::ranges::transform(sum, merged.begin() + plain->layout.layers[i].gate_up,
                           [](double value) { return static_cast<float>(value); });
  }
  Transformer result(std::move(plain));
  result.set_weights(merged);
  return result;
}

}  // namespace smalltalk
