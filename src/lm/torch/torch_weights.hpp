// The weights of R models of one configuration as tensors, views of the flat buffers [R, P], and
// the matrix products with them, batched over the models.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "lm/model/engine.hpp"

namespace smalltalk {

struct TorchWeight {
  // [R, ...]; of a layer that merges experts, whose R is 1, the feed-forward's are [E, ...]. The
  // value is of the type of the products, but for norms, whose is float32, as is the gradient.
  at::Tensor value, gradient;
};

// Products a x b whose sums are float32 whatever the type of both: written to `out` or added to
// `sum`, both [m, n] or [R, m, n], without a rounding in between.
void product_float(at::Tensor& out, const at::Tensor& a, const at::Tensor& b);
void add_product(at::Tensor& sum, const at::Tensor& a, const at::Tensor& b);

// x [R, T, in] times weight [R, out, in] -> [R, T, out]
at::Tensor product(const at::Tensor& x, const TorchWeight& weight);
// Adds the gradient of that weight; -> that of x.
at::Tensor product_backward(const at::Tensor& x, TorchWeight& weight, const at::Tensor& d_out);

struct TorchLayer {
  bool merges() const { return router.value.defined(); }

  TorchWeight qkv, output, gate_up, down, attention_norm, feed_forward_norm;
  TorchWeight router;  // undefined: no experts are merged
};

class TorchWeights {
 public:
  // Products are computed in `type`, float32 or bfloat16.
  TorchWeights(const ModelConfig& config, const ParameterLayout& layout, at::Device device,
               at::ScalarType type, int64_t num_models);

  // Every TorchWeight is made anew.
  void rebind(const ModelBuffers& buffers);

  TorchWeight embedding, head, final_norm;
  std::vector<TorchLayer> layers;

 private:
  // [count, shape], `stride` apart.
  TorchWeight weight(const at::Tensor& values, int64_t values_begin, int64_t offset, int64_t count,
                     int64_t stride, const std::vector<int64_t>& shape, float* gradients) const;

  ModelConfig config_;
  ParameterLayout layout_;
  at::Device device_;
  at::ScalarType type_;
  int64_t num_models_;
};

}  // namespace smalltalk
