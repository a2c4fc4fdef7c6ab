#include "lm/cpu/cpu_engine.hpp"

#include <algorithm>

#include "lm/cpu/elementwise.hpp"
#include "lm/cpu/gemm.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {
namespace {

// Tokens of one pass: enough for efficient products, few enough for the caches.
constexpr int64_t kPassTokens = 512;

int64_t rows_per_pass(int64_t length) { return std::max<int64_t>(1, kPassTokens / length); }

}  // namespace

CpuEngine::CpuEngine(const ModelConfig& config, const ParameterLayout& layout, ThreadTeam& team,
                     int64_t num_models)
    : config_(config), layout_(layout), team_(team), num_models_(num_models) {
  if (num_models > 1) {
    const bool whole = num_models >= team.size();
    for (int i = 0; i < (whole ? team.size() : 1); ++i) {
      Lane& lane = lanes_.emplace_back();
      if (whole) lane.team = std::make_unique<ThreadTeam>(1);
      lane.engine = std::make_unique<CpuEngine>(config, layout, whole ? *lane.team : team);
    }
    return;
  }
  for (int i = 0; i < team.size(); ++i) {
    workers_.emplace_back(CpuPass(config, layout));
  }
}

int64_t CpuEngine::pass_rows(int64_t rows, int64_t length, int64_t threads) {
  // Few enough that every thread has a pass.
  return std::min(rows_per_pass(length), (rows + threads - 1) / threads);
}

void CpuEngine::rebind(const ModelBuffers& buffers) {
  parameters_ = buffers.parameters;
  gradients_ = buffers.gradients;
}

void CpuEngine::for_models(const std::function<void(CpuEngine&, int64_t)>& work) {
  const auto take = [&](size_t lane) {
    CpuEngine& engine = *lanes_[lane].engine;
    engine.keep_ = keep_;
    for (auto m = static_cast<int64_t>(lane); m < num_models_;
         m += static_cast<int64_t>(lanes_.size())) {
      ModelBuffers buffers;
      buffers.parameters = parameters_ + m * layout_.total;
      if (gradients_ != nullptr) buffers.gradients = gradients_ + m * layout_.total;
      engine.rebind(buffers);
      work(engine, m);
    }
  };
  if (lanes_[0].team) {
    team_.run([&](int thread) { take(static_cast<size_t>(thread)); });
  } else {
    take(0);
  }
}

LossSums CpuEngine::accumulate_gradients(std::span<const int64_t> tokens, int64_t rows,
                                         int64_t row_tokens, float scale,
                                         const Exchange& exchange) {
  if (exchange.needed) exchange.needed(0, num_models_ * layout_.total);
  std::vector<double> losses(static_cast<size_t>(num_models_));
  const auto result = [&] { return LossSums{[losses] { return losses; }}; };
  if (num_models_ == 1) {
    losses[0] = train_rows(tokens, rows, row_tokens, scale, exchange.ready);
    return result();
  }
  const auto size = static_cast<size_t>(rows * row_tokens);
  for_models([&](CpuEngine& engine, int64_t m) {
    const auto part = tokens.subspan(static_cast<size_t>(m) * size, size);
    losses[m] = engine.train_rows(part, rows, row_tokens, scale, {});
  });
  if (exchange.ready) exchange.ready(0, num_models_ * layout_.total);
  return result();
}

PhaseSeconds CpuEngine::seconds() {
  return lanes_.empty() ? workers_[0].seconds : lanes_[0].engine->seconds();
}

Keep kept_with(Recompute recompute) {
  if (recompute == Recompute::selective) return Keep::products;
  return recompute == Recompute::full ? Keep::inputs : Keep::everything;
}

void CpuEngine::begin_training(const TrainingPlan& plan) { keep_ = kept_with(plan.recompute); }

void CpuEngine::load_rows(Worker& worker, std::span<const int64_t> tokens, int64_t first,
                          int64_t rows, int64_t row_tokens, int64_t pass_rows) {
  const int64_t length = row_tokens - 1;
  worker.inputs.assign(pass_rows * length, 0);
  worker.targets.assign(pass_rows * length, 0);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t* line = tokens.data() + (first + i) * row_tokens;
    std::copy_n(line, length, worker.inputs.data() + i * length);
    int64_t* targets = worker.targets.data() + i * length;
    std::copy_n(line + 1, length, targets);
    if (config_.document_end < 0) continue;
    for (int64_t t = 0; t < length; ++t) {
      if (line[t] == config_.document_end && targets[t] == config_.document_end) targets[t] = -1;
    }
  }
}

const int32_t* CpuEngine::find_starts(Worker& worker, const int64_t* inputs, int64_t rows,
                                      int64_t length) {
  if (!config_.document_mask) return nullptr;
  worker.starts.resize(rows * length);
  for (int64_t i = 0; i < rows * length; ++i) {
    const auto t = static_cast<int32_t>(i % length);
    const bool first = t == 0 || inputs[i] == config_.document_end;
    worker.starts[i] = first ? t : worker.starts[i - 1];
  }
  return worker.starts.data();
}

double CpuEngine::train_rows(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                             float scale, const GradientsReady& ready) {
  const int64_t length = row_tokens - 1;
  const int64_t threads = team_.size();
  const int64_t pass_rows = CpuEngine::pass_rows(rows, length, threads);
  rotary_.grow(config_, length);
  if (!loss_) {
    loss_ = std::make_unique<FusedLoss>(config_.hidden_size, config_.vocab_size, team_);
    for (Worker& worker : workers_) {
      if (&worker != workers_.data()) worker.gradients.assign(layout_.total - layout_.blocks, 0);
    }
  }
  loss_tokens_.resize(threads);
  loss_sum_ = 0;
  team_.run([&](int thread) {
    Worker& worker = workers_[thread];
    // One pass for each thread at a time; the last time some may have none.
    for (int64_t first = 0; first < rows; first += threads * pass_rows) {
      const int64_t mine = std::min(rows, first + thread * pass_rows);
      const int64_t count = std::min(pass_rows, rows - mine);
      load_rows(worker, tokens, mine, count, row_tokens, count);
      if (count > 0) {
        worker.pass.begin(parameters_, rotary_, worker.inputs.data(),
                          find_starts(worker, worker.inputs.data(), count, length), count, length,
                          keep_, {});
      }
      train_pass(thread, count, scale, first + threads * pass_rows >= rows, ready);
    }
  });
  return loss_sum_;
}

void CpuEngine::train_pass(int thread, int64_t rows, float scale, bool last,
                           const GradientsReady& ready) {
  Worker& worker = workers_[thread];
  CpuPass& pass = worker.pass;
  float* gradients = thread == 0 ? gradients_ + layout_.blocks : worker.gradients.data();
  // Only the last pass makes gradients final; they are merged and announced layer by layer.
  const auto finish = [&](int64_t begin, int64_t end) {
    if (!last) return;
    team_.wait();
    merge_gradients(thread, begin, end);
    team_.wait();
    if (ready && thread == 0) ready(begin, end);
  };
  loss_tokens_[thread] = {0, nullptr, nullptr, nullptr};
  if (rows > 0) {
    const TraceSpan span("forward", worker.seconds.forward);
    pass.forward();
    loss_tokens_[thread] = {pass.tokens(), pass.hidden(), worker.targets.data(), pass.d_hidden()};
  }
  {
    const TraceSpan span("loss", worker.seconds.forward);
    team_.wait();
    const double loss = loss_->run(thread, loss_tokens_, parameters_ + layout_.head, scale,
                                   gradients_ + layout_.head);
    if (thread == 0) loss_sum_ += loss;
  }
  const TraceSpan span("backward", worker.seconds.backward);
  if (last && ready && thread == 0 && !config_.tie_embeddings) ready(layout_.head, layout_.blocks);
  if (rows > 0) pass.backward_final_norm(gradients);
  for (int64_t i = config_.num_layers - 1; i >= 0; --i) {
    const TraceSpan layer_span("layer", i);
    if (rows > 0) pass.backward_layer(i, gradients);
    const bool top = i + 1 == config_.num_layers;
    finish(layout_.layers[i].qkv, top ? layout_.decay_size : layout_.layers[i + 1].qkv);
  }
  finish(layout_.decay_size, layout_.total);
  team_.wait();
  add_embedding_gradients(thread);
  team_.wait();
  if (last && ready && thread == 0) {
    ready(0, config_.tie_embeddings ? layout_.blocks : layout_.head);
  }
}

// Adds what the other workers have in [begin, end) to the first one's, and clears theirs.
void CpuEngine::merge_gradients(int thread, int64_t begin, int64_t end) {
  const auto [first, past] = part_of_range(end - begin, thread, team_.size(), 16);
  for (size_t i = 1; i < workers_.size(); ++i) {
    elementwise().move_into(workers_[i].gradients.data() + (begin - layout_.blocks) + first,
                            past - first, gradients_ + begin + first);
  }
}

// Every thread takes those tokens whose rows lie in its part of the vocabulary.
void CpuEngine::add_embedding_gradients(int thread) {
  const int64_t hidden = config_.hidden_size;
  const auto [begin, end] = part_of_range(config_.vocab_size, thread, team_.size(), 16);
  for (size_t i = 0; i < workers_.size(); ++i) {
    const CpuPass& pass = workers_[i].pass;
    for (int64_t t = 0; t < loss_tokens_[i].count; ++t) {
      const int64_t token = pass.inputs()[t];
      if (token < begin || token >= end) continue;
      elementwise().add_into(pass.d_embedding() + t * hidden, hidden,
                             gradients_ + layout_.embedding + token * hidden);
    }
  }
}

// A pass for each thread, or for each lane of models.
int64_t CpuEngine::rows_at_once(int64_t row_tokens) const {
  if (!lanes_.empty()) return lanes_[0].engine->rows_at_once(row_tokens);
  return team_.size() * rows_per_pass(row_tokens - 1);
}

void CpuEngine::compute_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                  std::span<float> log_probs, std::span<uint8_t> greedy,
                                  const Merging& merging) {
  ST_CHECK(rows <= rows_at_once(row_tokens));
  const int64_t length = row_tokens - 1;
  if (num_models_ > 1) {
    const auto size = static_cast<size_t>(rows * length);
    for_models([&](CpuEngine& engine, int64_t m) {
      const auto part = [&](auto all) {
        return all.empty() ? all : all.subspan(static_cast<size_t>(m) * size, size);
      };
      engine.compute_log_probs(tokens, rows, row_tokens, part(log_probs), part(greedy), merging);
    });
    return;
  }
  const int64_t pass_rows = rows_per_pass(length);
  rotary_.grow(config_, length);
  team_.run([&](int thread) {
    const int64_t first = thread * pass_rows;
    const int64_t count = std::min(pass_rows, rows - first);
    if (count <= 0) return;
    Worker& worker = workers_[thread];
    CpuPass& pass = score_pass(worker, tokens, first, count, row_tokens, merging);
    worker.log_probs.resize(pass_rows * length);
    worker.greedy.resize(pass_rows * length);
    target_log_probs(pass.tokens(), config_.hidden_size, config_.vocab_size, pass.hidden(),
                     parameters_ + layout_.head, worker.targets.data(), worker.log_probs.data(),
                     worker.greedy.data(), pass.scratch());
    std::copy_n(worker.log_probs.data(), count * length, log_probs.data() + first * length);
    if (greedy.empty()) return;
    std::copy_n(worker.greedy.data(), count * length, greedy.data() + first * length);
  });
}

CpuPass& CpuEngine::score_pass(Worker& worker, std::span<const int64_t> tokens, int64_t first,
                               int64_t rows, int64_t row_tokens, const Merging& merging) {
  const int64_t length = row_tokens - 1, pass_rows = rows_per_pass(length);
  // Always a whole pass, filled up with token 0: a row's result then does not depend on how many
  // rows there are.
  load_rows(worker, tokens, first, rows, row_tokens, pass_rows);
  worker.pass.begin(parameters_, rotary_, worker.inputs.data(),
                    find_starts(worker, worker.inputs.data(), pass_rows, length), pass_rows, length,
                    Keep::nothing, merging);
  worker.pass.forward();
  return worker.pass;
}

std::vector<RowRouting> CpuEngine::routing(std::span<const int64_t> tokens, int64_t rows,
                                           int64_t row_tokens) {
  ST_CHECK(num_models_ == 1 && config_.merges_experts() && rows <= rows_at_once(row_tokens));
  const int64_t pass_rows = rows_per_pass(row_tokens - 1);
  rotary_.grow(config_, row_tokens - 1);
  std::vector<RowRouting> result(static_cast<size_t>(rows));
  team_.run([&](int thread) {
    const int64_t first = thread * pass_rows;
    const int64_t count = std::min(pass_rows, rows - first);
    if (count <= 0) return;
    const CpuPass& pass = score_pass(workers_[thread], tokens, first, count, row_tokens, {});
    std::ranges::move(pass.routing(count), result.begin() + first);
  });
  return result;
}

void CpuEngine::sum_hidden_states(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                  std::span<const int64_t> lengths, std::span<double> sums) {
  ST_CHECK(num_models_ == 1 && rows <= rows_at_once(row_tokens));
  const int64_t length = row_tokens - 1, hidden = config_.hidden_size;
  const int64_t pass_rows = rows_per_pass(length);
  rotary_.grow(config_, length);
  std::ranges::fill(sums, 0.0);
  team_.run([&](int thread) {
    const int64_t first = thread * pass_rows;
    const int64_t count = std::min(pass_rows, rows - first);
    if (count <= 0) return;
    const CpuPass& pass = score_pass(workers_[thread], tokens, first, count, row_tokens, {});
    for (int64_t i = 0; i < count; ++i) {
      double* sum = sums.data() + (first + i) * hidden;
      const float* state = pass.hidden() + i * length * hidden;
      for (int64_t t = 0; t < lengths[first + i]; ++t, state += hidden) {
        for (int64_t h = 0; h < hidden; ++h) sum[h] += state[h];
      }
    }
  });
}

void CpuEngine::logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                       std::span<float> logits) {
  ST_CHECK(num_models_ == 1);
  const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
  const int64_t pass_rows = rows_per_pass(row_tokens);
  rotary_.grow(config_, row_tokens);
  team_.run([&](int thread) {
    CpuPass& pass = workers_[thread].pass;
    const auto [begin, end] = part_of_range(rows, thread, team_.size(), pass_rows);
    for (int64_t first = begin; first < end; first += pass_rows) {
      const int64_t* inputs = tokens.data() + first * row_tokens;
      const int64_t count = std::min(pass_rows, end - first);
      pass.begin(parameters_, rotary_, inputs,
                 find_starts(workers_[thread], inputs, count, row_tokens), count, row_tokens,
                 Keep::nothing, {});
      pass.forward();
      gemm_nt(pass.tokens(), vocab, hidden, 1, {pass.hidden(), hidden},
              {parameters_ + layout_.head, hidden}, false,
              {logits.data() + first * row_tokens * vocab, vocab});
    }
  });
}

}  // namespace smalltalk
