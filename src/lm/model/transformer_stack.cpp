#include "smalltalk/lm/model/transformer_stack.hpp"

#include "lm/model/transformer_impl.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

struct TransformerStack::Impl {
  Transformer::Impl all;
  std::vector<Transformer> models;  // views of `all`
};

TransformerStack::TransformerStack(const ModelConfig& config, const DeviceConfig& device,
                                   size_t num_models) {
  ST_CHECK(num_models > 0);
  const auto count = static_cast<int64_t>(num_models);
  impl_ = std::make_unique<Impl>(Impl{{config, device, count}, {}});
  for (int64_t i = 0; i < count; ++i) {
    impl_->models.emplace_back(std::make_unique<Transformer::Impl>(impl_->all, i));
  }
}

TransformerStack::TransformerStack(const ModelConfig& config, const DeviceConfig& device,
                                   std::span<const uint64_t> seeds)
    : TransformerStack(config, device, seeds.size()) {
  for (size_t i = 0; i < seeds.size(); ++i) impl_->models[i].impl().init(seeds[i]);
}

std::unique_ptr<TransformerStack> TransformerStack::load(
    std::span<const std::filesystem::path> folders, const DeviceConfig& device) {
  ST_CHECK(!folders.empty());
  std::unique_ptr<TransformerStack> stack;
  for (size_t i = 0; i < folders.size(); ++i) {
    const Transformer model = Transformer::load(folders[i], device);
    if (!stack) {
      stack.reset(new TransformerStack(model.config(), device, folders.size()));
    }
    if (!model.config().computes_like((*stack)[0].config())) {
      throw Error("'" + folders[i].string() + "' and '" + folders[0].string() +
                  "' hold models of different shapes: they cannot compute as one");
    }
    (*stack)[static_cast<int64_t>(i)].set_weights(model.weights());
  }
  return stack;
}

TransformerStack::~TransformerStack() = default;

int64_t TransformerStack::size() const { return impl_->all.num_models; }
Transformer& TransformerStack::operator[](int64_t model) {
  return impl_->models[static_cast<size_t>(model)];
}

TransformerStack::operator ModelsView() const { return ModelsView(impl_->all); }

Transformer::Impl& TransformerStack::with_gradients() {
  Transformer::Impl& all = impl_->all;
  if (all.gradients.defined()) return all;
  all.allocate_gradients();
  const int64_t size = all.layout.total;
  for (int64_t i = 0; i < this->size(); ++i) {
    Transformer::Impl& model = (*this)[i].impl();
    model.gradients = all.gradients.narrow(0, i * size, size);
    model.allocate_gradients();
  }
  return all;
}

}  // namespace smalltalk
