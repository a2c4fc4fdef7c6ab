// A decoder-only transformer: token embedding; L blocks of pre-norm RMSNorm, rotary attention
// (half-split layout, grouped heads) and feed-forward (SwiGLU, or the paper's two matrices with
// squared ReLU); final RMSNorm; output projection, tied or not. No biases, no dropout. Weights have
// Hugging Face's Llama names and layout, so that export is a rename (ArceeForCausalLM for relu2).
// All parameters are views into one flat buffer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// A rank's part of a model whose group has cut the merged experts along their hidden dimension F,
// so that each rank merges its own part of every segment's matrices (tensor parallelism, which
// Lory's authors propose and did not run): of every expert rows rank * F / ranks on of gate and up,
// as many of each, and the same columns of down.
struct ExpertSlice {
  int64_t rank = 0, ranks = 1;
  bool is_all() const { return ranks == 1; }
};
// Into how many slices a group of so many ranks cuts the model's experts: 1 if it does not.
inline int64_t num_slices(const ModelConfig& model, const TrainConfig& train, int64_t ranks) {
  return model.merges_experts() && train.tensor_parallel ? ranks : 1;
}
// Error: the model cannot be cut for so many ranks, since there are feed-forwards that are not
// merged, since they do not divide intermediate_size, or for document_mask.
void require_slices(const ModelConfig& config, int64_t ranks);

class Transformer {
 public:
  // Random weights, a function of `seed` alone (not of ranks, threads or device): matrices from
  // N(0, init_std), output projections of the residual branches divided by sqrt(2 L), the embedding
  // from N(0, embedding_std), norms one. A slice of a model has the same weights as the whole, and
  // can only be trained. Error: as that of require_slices().
  Transformer(const ModelConfig& config, const DeviceConfig& device, uint64_t seed,
              ExpertSlice slice = {});
  ~Transformer();
  Transformer(Transformer&&) noexcept;
  Transformer& operator=(Transformer&&) noexcept;

  // From a folder with config.json and model.safetensors, as save() or transformers writes it, or
  // with the weights of its checkpoint at `step`.
  static Transformer load(const std::filesystem::path& folder, const DeviceConfig& device,
                          int64_t step = 0);
  // Writes model.safetensors (float32, with `metadata`) and config.json, each atomically. The entry
  // "smalltalk.seq_length" of metadata, if there, becomes max_position_embeddings (else 2048),
  // which evaluators take for the context length.
  void save(const std::filesystem::path& folder,
            const std::map<std::string, std::string>& metadata) const;

  const ModelConfig& config() const;
  int64_t num_parameters() const;

  // All weights as one vector in host memory [num_parameters], in the model's own order, and back:
  // what ranks that share a model send each other.
  std::vector<float> weights() const;
  void set_weights(std::span<const float> values);

  // Parameters by name, and logits [rows, row_tokens, V] in float32: for tests and export.
  std::map<std::string, std::span<const float>> parameters() const;  // CPU models only
  std::vector<float> logits(std::span<const int64_t> tokens, int64_t count,
                            int64_t row_tokens) const;

  struct Impl;  // src/lm/model/transformer_impl.hpp, for the training loop
  Impl& impl() { return *impl_; }
  const Impl& impl() const { return *impl_; }

  explicit Transformer(std::unique_ptr<Impl> impl);  // for TransformerStack

 private:
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
