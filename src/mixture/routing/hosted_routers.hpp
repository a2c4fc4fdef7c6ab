// The routers that a rank scores with, as one model, and the training of those that it trains.
// Private to mixture.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "smalltalk/core/system/batch.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"
#include "smalltalk/lm/train/trainer.hpp"
#include "smalltalk/mixture/routing/router_em.hpp"

namespace smalltalk {

class HostedRouters {
 public:
  // As they were when they were last saved. At first all have the same weights (the paper does not
  // say): what tells them apart is then only what they were given, and not which of them happens to
  // start better.
  HostedRouters(const Run& run, const RouterHosting& hosting, int64_t steps_per_round);

  const std::vector<int>& ids() const { return ids_; }
  const TransformerStack& stack() const { return *stack_; }
  // The least that one of them has done; `otherwise` if this rank trains none.
  int64_t steps(int64_t otherwise) const;

  // Up to the given step, on rows[i]: all together, or in turn, if others train some of them or
  // they were stopped at different steps.
  void train(std::span<const RowSource> rows, int64_t last_step);
  // Gives the other ranks of a router's block the weights that its first rank trained. Collective
  // among them.
  void share_weights();
  // Writes the models; once all ranks have, removes the checkpoints. Collective.
  void save();

 private:
  Transformer& model(size_t i) { return (*stack_)[static_cast<int64_t>(i)]; }

  const Run& run_;
  const RouterHosting& hosting_;
  std::vector<int> ids_;
  std::unique_ptr<TransformerStack> stack_;         // [ids]
  std::vector<std::unique_ptr<Trainer>> trainers_;  // [ids]; null: another rank trains it
};

}  // namespace smalltalk
