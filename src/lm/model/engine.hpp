// What computes a transformer, forward and backward. There are two: CpuEngine, written out by hand
// for small models on few cores, and TorchEngine for GPUs (and on the CPU for slices of models, and
// for tests), out of LibTorch's products and kernels of our own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lm/model/parameter_layout.hpp"
#include "lm/model/phase_seconds.hpp"
#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/lm/model/row_routing.hpp"
#include "smalltalk/lm/model/scoring.hpp"

namespace at {
class Tensor;
}

namespace smalltalk {

class ThreadTeam;  // src/lm/cpu/thread_team.hpp

// Told that the gradients of [begin, end) of the flat buffer will not change any more in this call,
// so that they can be sent while the backward pass goes on. Every index is named once. One call at
// a time, from any thread. On a GPU they are final in the order of the current stream.
using GradientsReady = std::function<void(int64_t begin, int64_t end)>;

// Returns once the parameters of [begin, end) of the flat buffer have arrived, which other ranks
// may still be sending. On a GPU the current stream waits, not the caller.
using ParametersNeeded = std::function<void(int64_t begin, int64_t end)>;

// What goes on between the ranks of a group while gradients are computed. The first two may be
// empty; the others are there for slices of a model, and only for them.
struct Exchange {
  ParametersNeeded needed;  // asked before they are read for the first time in a call
  GradientsReady ready;
  // Of a slice of a model (ExpertSlice), in each pass, from the calling thread: the ranks' tensors
  // one after another along the first dimension, and this rank's part of the sum of all ranks'.
  std::function<at::Tensor(const at::Tensor& mine)> gather = {};
  std::function<at::Tensor(const at::Tensor& all)> sum = {};
};

// The flat buffers of R models. Those of a rank's own model end in padding, behind the last model.
struct ModelBuffers {
  // [R, P] float32. Null: a group has shared them out, and only `copies` and `norms` are whole.
  float* parameters = nullptr;
  void* copies = nullptr;  // of them, in bfloat16, for products: kept up by who writes parameters
  float* norms = nullptr;  // those from ParameterLayout::decay_size on; null: see `parameters`
  float* gradients = nullptr;  // [R, P] float32; null: nothing is trained
};

// Sums of -log p over the targets of a call, [R].
struct LossSums {
  std::function<std::vector<double>()> values;  // waits for the device
  const double* on_device = nullptr;            // GPUs only; until the engine's next call
};

// What is the same in all steps of a training.
struct TrainingPlan {
  Recompute recompute = Recompute::automatic;  // which is none here
  bool announces = false;                      // some calls will be told when gradients are ready
  bool operator==(const TrainingPlan&) const = default;
};

// Of R models of one configuration whose flat buffers [R, P] lie one after another; of one, unless
// the engine was made for more.
class Engine {
 public:
  virtual ~Engine() = default;
  // For the calls of accumulate_gradients that follow.
  virtual void begin_training(const TrainingPlan& plan) = 0;
  // tokens [R, rows, row_tokens], each model its own: every row predicts its tokens 1 ..
  // row_tokens - 1. Adds to the gradient buffer the gradients of `scale` times the sums of -log p,
  // which it returns unscaled. On a GPU nothing waits for the device.
  virtual LossSums accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                        int64_t row_tokens, float scale,
                                        const Exchange& exchange) = 0;
  // Which kernel computes attention, where there is a choice: known from the first step on.
  virtual std::string attention() const { return {}; }
  // What accumulate_gradients took since the engine was made, forward and backward. On a GPU this
  // waits for the device: call it once in many steps.
  virtual PhaseSeconds seconds() = 0;
  // The most rows that compute_log_probs takes: as many as the device works on at once.
  virtual int64_t rows_at_once(int64_t row_tokens) const = 0;
  // Under every model, log p of every token but a row's first, and 1 in `greedy` where no token is
  // likelier, else 0: [R, rows, row_tokens - 1] each. `greedy` may be empty: not asked for. A row's
  // bits depend neither on its place nor on how many rows there are.
  virtual void compute_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                 std::span<float> log_probs, std::span<uint8_t> greedy,
                                 const Merging& merging = {}) = 0;
  // How compute_log_probs weighs merged experts if not told otherwise, by row; of one model.
  // REQUIRES a model that merges, and at most rows_at_once rows.
  virtual std::vector<RowRouting> routing(std::span<const int64_t> tokens, int64_t rows,
                                          int64_t row_tokens) = 0;
  // sums [rows, H] <- of what the output projection reads, over the first lengths[row] tokens of a
  // row, as many as are scored or fewer; of one model. REQUIRES at most rows_at_once rows. A row's
  // bits are its own, as those of compute_log_probs.
  virtual void sum_hidden_states(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                 std::span<const int64_t> lengths, std::span<double> sums) = 0;
  // logits [rows, row_tokens, V]; of one model.
  virtual void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                      std::span<float> logits) = 0;
  // Where the flat buffers are: before the first call, and when they have moved.
  virtual void rebind(const ModelBuffers& buffers) = 0;
};

// The compute threads of a device's engines; models that take turns share them.
std::shared_ptr<ThreadTeam> make_thread_team(const DeviceConfig& device);

// The engine for the device on which `parameters` are, for `num_models` models. The rooms of the
// engines define these two, so that models need not know them.
std::unique_ptr<Engine> make_engine(const ModelConfig& config, const ParameterLayout& layout,
                                    const DeviceConfig& device, const at::Tensor& parameters,
                                    ThreadTeam& team, int64_t num_models);

}  // namespace smalltalk
