// The inside of a Transformer, for the training loop: flat buffers and the engine.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

#include "lm/model/engine.hpp"
#include "lm/model/parameter_layout.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

struct Transformer::Impl {
  // With buffers of its own.
  Impl(const ModelConfig& config, const DeviceConfig& device, int64_t num_models = 1,
       ExpertSlice slice = {});
  // One model of a stack, whose buffers are parts of the stack's.
  Impl(const Impl& stack, int64_t model);

  // Buffers of `padded` numbers, so that a group of ranks can share them out evenly, gradients
  // among them. Keeps the values; the padding is and stays zero.
  void pad_to(int64_t padded);
  // The same, but the ranks hold the float32 parameters, each its share, and here are only the
  // copies, and in float32 those from `norms_begin` on, the norms among them. For good: the model
  // can be trained, but neither saved nor read. REQUIRES copies.
  void share_out(int64_t padded, int64_t norms_begin);
  void init(uint64_t seed);  // as Transformer's constructor describes
  void set_parameter(const ParameterSpec& spec, std::span<const float> values);
  // `count` parameters from `begin` on have been written: copies them. What is written otherwise
  // must be said here.
  void copy_again(int64_t begin, int64_t count);
  // A copy of the flat parameters in host memory; cheap on the CPU (no copy). Error if they are
  // shared out.
  at::Tensor host_parameters() const;

  ModelConfig config;  // resolved
  DeviceConfig device;
  ParameterLayout layout;  // of the buffers, which may be of a slice of that model
  int64_t num_models;
  at::Tensor parameters;  // [num_models * P, padding], float32; undefined if shared out
  at::Tensor copies;      // the same in bfloat16, if products are computed in it
  at::Tensor norms;       // if shared out: parameters from norms_begin on, float32
  int64_t norms_begin = 0;
  at::Tensor gradients;  // as the parameters; undefined until a trainer asks for it
  void allocate_gradients();
  std::shared_ptr<ThreadTeam> team;
  std::unique_ptr<Engine> engine;

 private:
  void make_engine_here();
  void rebind();
};

}  // namespace smalltalk
