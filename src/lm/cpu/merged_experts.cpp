#include "lm/cpu/merged_experts.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "lm/cpu/cpu_kernels.hpp"
#include "lm/cpu/elementwise.hpp"

namespace smalltalk {
namespace {

// What is merged at once, in floats: half of a cache of 1 MB.
constexpr int64_t kTileFloats = 1 << 17;
constexpr int64_t kBlock = 16;     // segments
constexpr int64_t kTileRows = 32;  // or a multiple: whole panels of a product
// Between segments: at a distance of a power of 2 they would all lie on the same lines of a cache.
constexpr int64_t kPadding = 16;

int64_t tile_rows(const ExpertMatrices& matrices, int64_t segments) {
  const int64_t fit = kTileFloats / (segments * matrices.columns) / kTileRows * kTileRows;
  return std::min(std::max(fit, kTileRows), matrices.rows);
}

// c [m, n] = a [m, k] b [k, n] for few m and k and many n, which our own kernel does best; a may
// lie transposed.
void combine(int64_t m, int64_t n, int64_t k, Matrix a, bool a_transposed, Matrix b,
             bool accumulate, MutableMatrix c) {
  cpu_kernels().product({m, n, k, a.data, a.stride, a_transposed, b.data, b.stride, false, c.data,
                         c.stride, 1, accumulate});
}

void grow(std::vector<float>& buffer, int64_t floats) {
  if (buffer.size() < static_cast<size_t>(floats)) buffer.resize(static_cast<size_t>(floats));
}

}  // namespace

std::vector<Segment> cut_into_segments(const ModelConfig& config, int64_t rows, int64_t length,
                                       const int32_t* starts, int64_t prompt_tokens) {
  const bool by_first = prompt_tokens > 0 || config.routing == SegmentRouting::prefix;
  std::vector<Segment> segments;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t document = -1, first = 0;
    for (int64_t t = 0; t < length; ++t) {
      const int64_t token = row * length + t;
      const int64_t start = starts == nullptr ? 0 : starts[token];
      const auto index = static_cast<int64_t>(segments.size());
      const bool next =
          prompt_tokens > 0 ? t - start == prompt_tokens : (t - start) % config.segment_tokens == 0;
      if (start != document) {
        segments.push_back({token, 0, index});
        document = start;
        first = index;
      } else if (next) {
        segments.push_back({token, 0, by_first ? first : index - 1});
      }
      ++segments.back().size;
    }
  }
  return segments;
}

std::vector<RowRouting> routing_by_row(const std::vector<Segment>& segments, int64_t experts,
                                       const std::vector<const float*>& layers, int64_t rows,
                                       int64_t length) {
  std::vector<RowRouting> result(static_cast<size_t>(rows));
  int64_t begin = 0;
  for (int64_t row = 0; row < rows; ++row) {
    RowRouting& routing = result[static_cast<size_t>(row)];
    int64_t end = begin;
    for (; end < std::ssize(segments) && segments[end].begin < (row + 1) * length; ++end) {
      routing.segments.push_back({segments[end].begin - row * length, segments[end].source == end});
    }
    for (const float* weights : layers) {
      routing.weights.insert(routing.weights.end(), weights + begin * experts,
                             weights + end * experts);
    }
    begin = end;
  }
  return result;
}

int64_t max_segments(const ModelConfig& config, int64_t rows, int64_t length) {
  if (config.document_mask) return rows * length;  // a document may be one token
  // Two: a prompt and what follows.
  return rows * std::max<int64_t>(2, (length + config.segment_tokens - 1) / config.segment_tokens);
}

template <typename Work>
void MergedExperts::for_tiles(const ExpertMatrices& matrices, const float* weights, Work&& work) {
  const int64_t experts = config_.merged_experts;
  for (int64_t block = 0; block < num_segments(); block += kBlock) {
    const int64_t segments = std::min(kBlock, num_segments() - block);
    const int64_t at_once = tile_rows(matrices, segments);
    for (int64_t row = 0; row < matrices.rows; row += at_once) {
      const int64_t rows = std::min(at_once, matrices.rows - row), size = rows * matrices.columns;
      const int64_t stride = size + kPadding;
      grow(merged_, segments * stride);
      combine(segments, size, experts, {weights + block * experts, experts}, false,
              {matrices.data + row * matrices.columns, matrices.stride}, false,
              {merged_.data(), stride});
      work(row, rows, block, segments);
    }
  }
}

void MergedExperts::pool(const float* x) {
  const int64_t hidden = config_.hidden_size;
  grow(pooled_, num_segments() * hidden);
  for (int64_t s = 0; s < num_segments(); ++s) {
    const Segment& source = segments_[segments_[s].source];
    float* mean = pooled_.data() + s * hidden;
    std::fill_n(mean, hidden, 0.0F);
    for (int64_t t = 0; t < source.size; ++t) {
      elementwise().add_into(x + (source.begin + t) * hidden, hidden, mean);
    }
    const float share = 1.0F / static_cast<float>(source.size);
    for (int64_t i = 0; i < hidden; ++i) mean[i] *= share;
  }
}

void MergedExperts::route(const float* x, const float* router, bool leaky, float* weights) {
  const int64_t hidden = config_.hidden_size, experts = config_.merged_experts;
  pool(x);
  gemm_nt(num_segments(), experts, hidden, 1, {pooled_.data(), hidden}, {router, hidden}, false,
          {weights, experts});
  for (int64_t s = 0; s < num_segments(); ++s) {
    float* row = weights + s * experts;
    if (!leaky && segments_[s].source == s) {
      std::fill_n(row, experts, 1.0F / static_cast<float>(experts));
      continue;
    }
    const float maximum = *std::max_element(row, row + experts);
    float sum = 0;
    for (int64_t e = 0; e < experts; ++e) sum += row[e] = std::exp(row[e] - maximum);
    for (int64_t e = 0; e < experts; ++e) row[e] /= sum;
  }
}

void MergedExperts::multiply(const ExpertMatrices& matrices, const float* weights, const float* x,
                             bool accumulate, float* out) {
  const int64_t columns = matrices.columns, out_stride = matrices.rows;
  for_tiles(matrices, weights, [&](int64_t row, int64_t rows, int64_t block, int64_t segments) {
    for (int64_t i = 0; i < segments; ++i) {
      const Segment& segment = segments_[block + i];
      gemm_nt(segment.size, rows, columns, 1, {x + segment.begin * columns, columns},
              {merged_.data() + i * (rows * columns + kPadding), columns}, accumulate,
              {out + segment.begin * out_stride + row, out_stride});
    }
  });
}

void MergedExperts::multiply_backward(const ExpertMatrices& matrices, const float* weights,
                                      const float* x, const float* d_out, float* d_x,
                                      float* d_matrices, float* d_weights) {
  const int64_t columns = matrices.columns, experts = config_.merged_experts;
  const int64_t out_stride = matrices.rows;
  for_tiles(matrices, weights, [&](int64_t row, int64_t rows, int64_t block, int64_t segments) {
    const int64_t size = rows * columns, stride = size + kPadding;
    grow(d_merged_, segments * stride);
    for (int64_t i = 0; i < segments; ++i) {
      const Segment& segment = segments_[block + i];
      const Matrix d_of{d_out + segment.begin * out_stride + row, out_stride};
      gemm_nn(segment.size, columns, rows, 1, d_of, {merged_.data() + i * stride, columns}, row > 0,
              {d_x + segment.begin * columns, columns});
      gemm_tn(rows, columns, segment.size, 1, d_of, {x + segment.begin * columns, columns}, false,
              {d_merged_.data() + i * stride, columns});
    }
    const int64_t offset = row * columns;
    combine(experts, size, segments, {weights + block * experts, experts}, true,
            {d_merged_.data(), stride}, true, {d_matrices + offset, matrices.stride});
    gemm_nt(segments, experts, size, 1, {d_merged_.data(), stride},
            {matrices.data + offset, matrices.stride}, true,
            {d_weights + block * experts, experts});
  });
}

void MergedExperts::route_backward(const float* x, const float* router, const float* weights,
                                   float* d_weights, float* d_router, float* d_x) {
  const int64_t hidden = config_.hidden_size, experts = config_.merged_experts;
  // Through the softmax; first segments' weights are constants.
  for (int64_t s = 0; s < num_segments(); ++s) {
    const float* row = weights + s * experts;
    float* d_row = d_weights + s * experts;
    float mean = 0;
    for (int64_t e = 0; e < experts; ++e) mean += row[e] * d_row[e];
    const bool routed = segments_[s].source != s;
    for (int64_t e = 0; e < experts; ++e) d_row[e] = routed ? row[e] * (d_row[e] - mean) : 0.0F;
  }
  pool(x);
  grow(d_pooled_, num_segments() * hidden);
  gemm_tn(experts, hidden, num_segments(), 1, {d_weights, experts}, {pooled_.data(), hidden}, true,
          {d_router, hidden});
  gemm_nn(num_segments(), hidden, experts, 1, {d_weights, experts}, {router, hidden}, false,
          {d_pooled_.data(), hidden});
  for (int64_t s = 0; s < num_segments(); ++s) {
    if (segments_[s].source == s) continue;
    const Segment& source = segments_[segments_[s].source];
    float* d_mean = d_pooled_.data() + s * hidden;
    const float share = 1.0F / static_cast<float>(source.size);
    for (int64_t i = 0; i < hidden; ++i) d_mean[i] *= share;
    for (int64_t t = 0; t < source.size; ++t) {
      elementwise().add_into(d_mean, hidden, d_x + (source.begin + t) * hidden);
    }
  }
}

int64_t MergedExperts::memory_floats(const ModelConfig& config, int64_t segments, bool backward) {
  const int64_t pooled = segments * config.hidden_size;
  int64_t tile = 0;
  for (const auto& [rows, columns] : {std::pair(gate_up_width(config), config.hidden_size),
                                      std::pair(config.hidden_size, config.intermediate_size)}) {
    const int64_t block = std::min(kBlock, segments);
    const ExpertMatrices matrices{rows, columns, 0, nullptr};
    tile = std::max(tile, block * (tile_rows(matrices, block) * columns + kPadding));
  }
  return (backward ? 2 : 1) * (pooled + tile);
}

}  // namespace smalltalk
