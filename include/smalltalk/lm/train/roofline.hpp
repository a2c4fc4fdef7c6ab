// How long a training step of an expert should take on a GPU, added up by what it does: FLOPs over
// the rate that such work reaches, bytes over the bandwidth. A plan for who has no GPU at hand yet;
// `ci/gpu.sh` measures. bfloat16 with float32 masters, the engine of lm/torch.
//
// What is assumed: products reach 0.72 of the peak (0.80 was seen at 8,192^3 on an H200, and layers
// are smaller), attention 0.45 of it, element-wise kernels 0.85 of the bandwidth. Of a group's
// traffic over NVLink (300 GB/s each way), sums of gradients hide behind the backward pass, the
// gathering of bfloat16 parameters behind the forward pass, but for those of the embedding and of
// one layer. What ranks that cut experts send each other within the layers hides behind nothing,
// and keeps the rest waiting, which is not counted.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

struct Accelerator {
  std::string name;
  double peak_flops = 0;        // dense bfloat16, per second
  double bytes_per_second = 0;  // of its memory
};
// A100, H100, H200 and B200 (80 GB and more, SXM), by the maker's data sheets.
const std::vector<Accelerator>& accelerators();

struct StepTime {  // seconds
  double products = 0, attention = 0, elementwise = 0, loss = 0, optimizer = 0, communication = 0;
  double total() const {
    return products + attention + elementwise + loss + optimizer + communication;
  }
  double loss_products = 0;  // the part of `loss` that is products
  // Of the products, the loss's and those that are computed again among them; no seconds.
  double product_flops = 0;
  // The share of the peak that the model's FLOPs reach (core/experiment/flops.hpp); what is
  // computed again does not count.
  double mfu = 0;
};
// A step of one rank of a group, all its micro-batches.
StepTime predicted_step(const ModelConfig& model, const TrainConfig& train, int64_t seq_length,
                        int group_size, const Accelerator& accelerator);

}  // namespace smalltalk
