// What computes a transformer, forward and backward. There are two: CpuEngine, written out by hand
// for small models on few cores, and TorchEngine for GPUs (and for tests, on the CPU), which writes
// out the matrix products and their gradients and leaves what lies between them to autograd.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "lm/model/parameter_layout.hpp"
#include "lm/model/phase_seconds.hpp"
#include "smalltalk/core/experiment/experiment.hpp"

namespace at {
class Tensor;
}

namespace smalltalk {

class ThreadTeam;  // src/lm/cpu/thread_team.hpp

// Told that the gradients of [begin, end) of the flat buffer will not change any more in this call,
// so that they can be sent while the backward pass goes on. Every index is named once. One call at
// a time, from any thread. On a GPU they are final in the order of the current stream.
using GradientsReady = std::function<void(int64_t begin, int64_t end)>;

// What is the same in all steps of a training.
struct TrainingPlan {
  Recompute recompute = Recompute::none;
  bool announces = false;  // some calls will be told when gradients are ready
  bool operator==(const TrainingPlan&) const = default;
};

// Of R models of one configuration whose flat buffers [R, P] lie one after another; of one, unless
// the engine was made for more.
class Engine {
 public:
  virtual ~Engine() = default;
  // For the calls of accumulate_gradients that follow.
  virtual void begin_training(const TrainingPlan& plan) = 0;
  // The parameters are others than in the call of accumulate_gradients before. begin_training()
  // says so, too; what only scores needs not be told.
  virtual void parameters_changed() = 0;
  // tokens [R, rows, row_tokens], each model its own: every row predicts its tokens 1 ..
  // row_tokens - 1. Adds to the gradient buffer the gradients of `scale` times the sums of -log p;
  // returns these sums [R], unscaled.
  virtual std::vector<double> accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                                   int64_t row_tokens, float scale,
                                                   const GradientsReady& ready) = 0;
  // What accumulate_gradients took since the engine was made, forward and backward. On a GPU this
  // waits for the device: call it once in many steps.
  virtual PhaseSeconds seconds() = 0;
  // The most rows that compute_log_probs takes: as many as the device works on at once.
  virtual int64_t rows_at_once(int64_t row_tokens) const = 0;
  // Under every model, log p of every token but a row's first, and 1 in `greedy` where no token is
  // likelier, else 0: [R, rows, row_tokens - 1] each. `greedy` may be empty: not asked for. A row's
  // bits depend neither on its place nor on how many rows there are.
  virtual void compute_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                 std::span<float> log_probs, std::span<uint8_t> greedy) = 0;
  // logits [rows, row_tokens, V]; of one model.
  virtual void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                      std::span<float> logits) = 0;
  // The flat buffers have moved.
  virtual void rebind(float* parameters, float* gradients) = 0;
};

// The compute threads of a device's engines; models that take turns share them.
std::shared_ptr<ThreadTeam> make_thread_team(const DeviceConfig& device);

// The engine for the device, for `num_models` models whose flat `parameters` are bound to it. The
// rooms of the engines define these two, so that models need not know them.
std::unique_ptr<Engine> make_engine(const ModelConfig& config, const ParameterLayout& layout,
                                    const DeviceConfig& device, const at::Tensor& parameters,
                                    ThreadTeam& team, int64_t num_models);

}  // namespace smalltalk
