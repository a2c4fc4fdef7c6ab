#include "torch_loss.hpp"

#include <torch/torch.h>

namespace smalltalk {
namespace {

constexpr int64_t kTileTokens = 2048;

// Both gradients are computed in the forward pass, while the tile's logits exist; the backward
// pass only multiplies them by the gradient of the sum.
class TiledCrossEntropy : public torch::autograd::Function<TiledCrossEntropy> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& hidden,
                            const at::Tensor& head, const at::Tensor& targets) {
    const at::Tensor d_hidden = at::empty_like(hidden);
    at::Tensor d_head = at::zeros(head.sizes(), head.options().dtype(at::kFloat));
    at::Tensor loss = at::zeros({}, head.options().dtype(at::kDouble));
    for (int64_t first = 0; first < hidden.size(0); first += kTileTokens) {
      const int64_t count = std::min(kTileTokens, hidden.size(0) - first);
      const at::Tensor input = hidden.narrow(0, first, count);
      const at::Tensor target = targets.narrow(0, first, count).unsqueeze(1);
      at::Tensor probability = at::log_softmax(at::mm(input, head.t()).to(at::kFloat), -1);
      loss -= probability.gather(1, target).sum(at::kDouble);
      probability.exp_();
      probability.scatter_add_(1, target, at::full({count, 1}, -1.0F, probability.options()));
      const at::Tensor d_logits = probability.to(head.scalar_type());
      at::Tensor d_input = d_hidden.narrow(0, first, count);
      at::mm_out(d_input, d_logits, head);
      d_head += at::mm(d_logits.t(), input);
    }
    context->save_for_backward({d_hidden, d_head.to(head.scalar_type())});
    return loss.to(at::kFloat);
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    return {saved[0] * gradients[0].to(saved[0].scalar_type()),
            saved[1] * gradients[0].to(saved[1].scalar_type()), at::Tensor()};
  }
};

}  // namespace

at::Tensor tiled_cross_entropy(const at::Tensor& hidden, const at::Tensor& head,
                               const at::Tensor& targets) {
  return TiledCrossEntropy::apply(hidden, head, targets);
}

at::Tensor tiled_target_log_probs(const at::Tensor& hidden, const at::Tensor& head,
                                  const at::Tensor& targets) {
  const at::Tensor result = at::empty({hidden.size(0)}, hidden.options().dtype(at::kFloat));
  for (int64_t first = 0; first < hidden.size(0); first += kTileTokens) {
    const int64_t count = std::min(kTileTokens, hidden.size(0) - first);
    const at::Tensor logits = at::mm(hidden.narrow(0, first, count), head.t()).to(at::kFloat);
    const at::Tensor target = targets.narrow(0, first, count).unsqueeze(1);
    result.narrow(0, first, count).copy_(at::log_softmax(logits, -1).gather(1, target).squeeze(1));
  }
  return result;
}

}  // namespace smalltalk
