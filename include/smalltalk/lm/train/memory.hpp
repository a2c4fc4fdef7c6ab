// What training one model takes on each device, from its configuration alone.
#pragma once

#include <cstdint>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// Bytes. The process itself is not in it: code, LibTorch, MPI, the CUDA context; nor what the
// caching allocator of GPUs keeps unused.
struct MemoryEstimate {
  double weights = 0;  // float32, and on GPUs their copies in the type of the products
  double gradients = 0;
  double optimizer = 0;      // moments, shared out over the group
  double communication = 0;  // buffers beside those that are reduced in place
  double activations = 0;    // of one micro-batch
  double loss = 0;           // output projection and cross-entropy
  double checkpoint = 0;     // being written; on GPUs it lies in the host's memory

  double total() const {
    return weights + gradients + optimizer + communication + activations + loss + checkpoint;
  }
};

// Rows of seq_length + 1 tokens. The model's vocab_size must be known.
MemoryEstimate predicted_memory(const ModelConfig& model, const TrainConfig& train,
                                const DeviceConfig& device, int64_t seq_length, int group_size);

// The configuration with what it leaves open: recompute = auto becomes the least with which
// training is predicted to fit into a GPU of so many bytes, less a tenth for the context, the
// libraries and what the allocator keeps, micro_batch_size = 0 the largest that divides a rank's
// share of the batch and fits. For micro batches of 4,096 tokens, more is computed again. Error
// naming the keys that save memory: nothing fits. On the CPU nothing is computed again unless it is
// asked for.
TrainConfig fitted_to_device(const ModelConfig& model, const TrainConfig& train,
                             const DeviceConfig& device, int64_t seq_length, int group_size,
                             double device_bytes);

}  // namespace smalltalk
