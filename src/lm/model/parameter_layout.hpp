// Where each parameter lies in the flat buffer: embedding and output projection, the matrices of
// the blocks, norm weights last, so that one index decides weight decay; q, k, v of a layer lie one
// after another, as do gate and up, so that each group is one matrix for one GEMM. H hidden, F
// intermediate, V vocabulary, Q = (heads + 2 kv heads) * head_dim.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

// Pieces of a buffer that ranks share out begin at multiples of 16 bytes, without which NCCL copies
// slowly.
constexpr int64_t kPieceFloats = 4;

struct ParameterSpec {
  std::string name;            // as in Hugging Face's Llama
  std::vector<int64_t> shape;  // [out, in] for matrices
  int64_t offset = 0;          // in floats
  int64_t size = 0;
  double init_std = 0;  // 0: ones (norm weights)
};

struct LayerOffsets {             // F: of this slice
  int64_t qkv = 0;                // [Q, H]
  int64_t output = 0;             // [H, heads * head_dim]
  int64_t gate_up = 0;            // [2 F, H]: gate, then up; relu2: [F, H]
  int64_t down = 0;               // [H, F]
  int64_t router = 0;             // [E, H], where experts are merged; the above are of the first
  bool merges = false;            // whether they are
  int64_t attention_norm = 0;     // [H]
  int64_t feed_forward_norm = 0;  // [H]
};

struct ParameterLayout {
  std::vector<ParameterSpec> specs;
  std::vector<LayerOffsets> layers;
  int64_t embedding = 0;   // [V, H]
  int64_t head = 0;        // [V, H]; the embedding if tied
  int64_t blocks = 0;      // where the blocks' matrices begin
  int64_t final_norm = 0;  // [H]
  int64_t decay_size = 0;  // parameters before this index decay
  int64_t total = 0;
  int64_t expert_stride = 0;  // from a merged expert's matrices to the next one's
  // Slices of experts lie in front of all else, `sliced` floats, padding at their end included, so
  // that what the ranks of a group have in common is one range.
  ExpertSlice slice;
  int64_t sliced = 0;
};

std::map<std::string_view, const ParameterSpec*> specs_by_name(const ParameterLayout& layout);

// `config` must be resolved. Error if the sizes do not fit together.
ParameterLayout parameter_layout(const ModelConfig& config, ExpertSlice slice = {});

// The configuration of what one rank computes.
ModelConfig sliced(const ModelConfig& config, ExpertSlice slice);

// Where a parameter of a slice lies in that of the whole model: `count` runs of `size` floats each,
// `stride` apart, one after another in the slice.
struct SliceRuns {
  int64_t begin = 0, count = 1, size = 0, stride = 0;
};
SliceRuns slice_runs(const ParameterSpec& whole, const ParameterSpec& part, ExpertSlice slice);

// What a parameter of a model that merges experts begins as, once the plain model of the same shape
// (ModelConfig::dense()) has been trained for a while: the name there. Empty: a router, which that
// model has not.
std::string name_in_dense(const std::string& name);

// Widths that several files need.
inline int64_t qkv_width(const ModelConfig& c) {
  return (c.num_heads + 2 * c.num_kv_heads) * c.head_dim();
}
inline int64_t gate_up_width(const ModelConfig& c) {
  return c.feed_forward == FeedForward::swiglu ? 2 * c.intermediate_size : c.intermediate_size;
}

// Fills `values` [spec.size] with the initial weights: a function of (seed, name, index) alone.
void init_parameter(const ParameterSpec& spec, uint64_t seed, float* values);

}  // namespace smalltalk
