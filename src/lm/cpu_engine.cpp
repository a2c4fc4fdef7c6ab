#include "cpu_engine.hpp"

#include <algorithm>
#include <exception>
#include <thread>

#include "kernels.hpp"

namespace smalltalk {
namespace {

// Tokens of one block: enough for efficient products, few enough for the caches.
constexpr int64_t kBlockTokens = 512;

int64_t rows_per_block(int64_t length) { return std::max<int64_t>(1, kBlockTokens / length); }

}  // namespace

CpuEngine::CpuEngine(const ModelConfig& config, const ParameterLayout& layout, int threads)
    : config_(config), layout_(layout) {
  for (int i = 0; i < threads; ++i) workers_.push_back({CpuBlock(config, layout), {}, {}, {}, 0});
}

void CpuEngine::rebind(float* parameters, float* gradients) {
  parameters_ = parameters;
  gradients_ = gradients;
}

void CpuEngine::for_shares(int64_t rows, int64_t block_rows,
                           const std::function<void(Worker&, int64_t, int64_t)>& work) {
  const auto count = static_cast<int64_t>(workers_.size());
  const int64_t blocks = (rows + block_rows - 1) / block_rows;
  const auto begin = [&](int64_t worker) {
    return std::min(rows, worker * blocks / count * block_rows);
  };
  std::vector<std::exception_ptr> errors(count);
  const auto run = [&](int64_t i) {
    try {
      if (begin(i) < begin(i + 1)) work(workers_[i], begin(i), begin(i + 1) - begin(i));
    } catch (...) {
      errors[i] = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> threads;
    for (int64_t i = 1; i < count; ++i) threads.emplace_back(run, i);
    run(0);
  }
  for (const std::exception_ptr& error : errors) {
    if (error) std::rethrow_exception(error);
  }
}

double CpuEngine::accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                       int64_t row_tokens, float scale) {
  const int64_t length = row_tokens - 1;
  // With several threads, blocks small enough that each has work.
  const auto count = static_cast<int64_t>(workers_.size());
  const int64_t block_rows = std::min(rows_per_block(length), (rows + count - 1) / count);
  rotary_.grow(config_, length);
  for (Worker& worker : workers_) {
    worker.loss = 0;
    if (&worker != workers_.data()) worker.gradients.assign(layout_.total, 0.0F);
  }
  for_shares(rows, block_rows, [&](Worker& worker, int64_t first, int64_t share) {
    float* gradients = &worker == workers_.data() ? gradients_ : worker.gradients.data();
    worker.inputs.resize(block_rows * length);
    worker.targets.resize(block_rows * length);
    for (int64_t row = first; row < first + share; row += block_rows) {
      const int64_t block = std::min(block_rows, first + share - row);
      for (int64_t i = 0; i < block; ++i) {
        const int64_t* line = tokens.data() + (row + i) * row_tokens;
        std::copy_n(line, length, worker.inputs.data() + i * length);
        std::copy_n(line + 1, length, worker.targets.data() + i * length);
      }
      worker.loss += worker.block.train(parameters_, rotary_, worker.inputs.data(),
                                        worker.targets.data(), block, length, scale, gradients);
    }
  });
  double loss = 0;
  for (Worker& worker : workers_) {
    loss += worker.loss;
    if (&worker != workers_.data()) {
      add_into(worker.gradients.data(), layout_.total, gradients_);
    }
  }
  return loss;
}

void CpuEngine::target_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                 std::span<float> log_probs) {
  const int64_t length = row_tokens - 1;
  const int64_t block_rows = rows_per_block(length);
  rotary_.grow(config_, length);
  for_shares(rows, block_rows, [&](Worker& worker, int64_t first, int64_t share) {
    // Always whole blocks, the last one filled up with token 0: a row's result then does not
    // depend on how many rows there are.
    worker.inputs.resize(block_rows * length);
    worker.targets.resize(block_rows * length);
    std::vector<float> result(block_rows * length);
    for (int64_t row = first; row < first + share; row += block_rows) {
      const int64_t block = std::min(block_rows, first + share - row);
      std::fill(worker.inputs.begin(), worker.inputs.end(), 0);
      std::fill(worker.targets.begin(), worker.targets.end(), 0);
      for (int64_t i = 0; i < block; ++i) {
        const int64_t* line = tokens.data() + (row + i) * row_tokens;
        std::copy_n(line, length, worker.inputs.data() + i * length);
        std::copy_n(line + 1, length, worker.targets.data() + i * length);
      }
      worker.block.target_log_probs(parameters_, rotary_, worker.inputs.data(),
                                    worker.targets.data(), block_rows, length, result.data());
      std::copy_n(result.data(), block * length, log_probs.data() + row * length);
    }
  });
}

void CpuEngine::logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                       std::span<float> logits) {
  const int64_t block_rows = rows_per_block(row_tokens);
  rotary_.grow(config_, row_tokens);
  for_shares(rows, block_rows, [&](Worker& worker, int64_t first, int64_t share) {
    for (int64_t row = first; row < first + share; row += block_rows) {
      const int64_t block = std::min(block_rows, first + share - row);
      worker.block.logits(parameters_, rotary_, tokens.data() + row * row_tokens, block, row_tokens,
                          logits.data() + row * row_tokens * config_.vocab_size);
    }
  });
}

}  // namespace smalltalk
