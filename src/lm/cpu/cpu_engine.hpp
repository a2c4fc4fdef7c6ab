// The transformer on the CPU in float32, written out by hand: no autograd, no allocation per step.
// Every thread takes a few sequences at a time through all layers (CpuPass), with gradients of its
// own for the layers' matrices, while the output projection and its loss are
// shared out by vocabulary. Sums are formed in a fixed order, so that results depend on the number
// of threads only through rounding.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "lm/cpu/cpu_loss.hpp"
#include "lm/cpu/cpu_pass.hpp"
#include "lm/cpu/thread_team.hpp"
#include "lm/model/engine.hpp"

namespace smalltalk {

// What a training step keeps of the forward pass.
Keep kept_with(Recompute recompute);

class CpuEngine : public Engine {
 public:
  // Several models are dealt out whole to the threads, if there are at least as many as threads.
  CpuEngine(const ModelConfig& config, const ParameterLayout& layout, ThreadTeam& team,
            int64_t num_models = 1);

  void begin_training(const TrainingPlan& plan) override;
  // Parameters are asked for as a whole: on a CPU, sending takes the cores that computing needs.
  LossSums accumulate_gradients(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                                float scale, const Exchange& exchange) override;
  PhaseSeconds seconds() override;  // of the first worker; the others work alike
  int64_t rows_at_once(int64_t row_tokens) const override;
  void compute_log_probs(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<float> log_probs, std::span<uint8_t> greedy,
                         const Merging& merging = {}) override;
  std::vector<RowRouting> routing(std::span<const int64_t> tokens, int64_t rows,
                                  int64_t row_tokens) override;
  void sum_hidden_states(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
                         std::span<const int64_t> lengths, std::span<double> sums) override;
  void logits(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens,
              std::span<float> logits) override;
  void rebind(const ModelBuffers& buffers) override;

  // Rows of one pass of a training step over `rows` rows.
  static int64_t pass_rows(int64_t rows, int64_t length, int64_t threads);

 private:
  // An engine of one model on a part of the threads, which the models take in turn.
  struct Lane {
    std::unique_ptr<ThreadTeam> team;  // null: all threads
    std::unique_ptr<CpuEngine> engine;
  };
  // The gradients of one model.
  double train_rows(std::span<const int64_t> tokens, int64_t rows, int64_t row_tokens, float scale,
                    const GradientsReady& ready);
  void for_models(const std::function<void(CpuEngine&, int64_t)>& work);

  struct Worker {
    explicit Worker(CpuPass its) : pass(std::move(its)) {}

    CpuPass pass;
    std::vector<int64_t> inputs, targets;  // of one pass, [rows * length]
    std::vector<int32_t> starts;           // the same, if attention stays within documents
    std::vector<float> log_probs;          // of one pass
    std::vector<uint8_t> greedy;           // of one pass
    std::vector<float> gradients;          // of the blocks; not used by the first worker
    PhaseSeconds seconds;
  };
  // Of a pass over `inputs` [rows * length]: where the document of each token starts, or null.
  const int32_t* find_starts(Worker& worker, const int64_t* inputs, int64_t rows, int64_t length);
  // Copies rows for the worker's pass; rows that are not there become token 0. Targets that are
  // padding become -1.
  void load_rows(Worker& worker, std::span<const int64_t> tokens, int64_t first, int64_t rows,
                 int64_t row_tokens, int64_t pass_rows);
  // Scores `rows` rows on one thread, from `first` on, up to the output projection.
  CpuPass& score_pass(Worker& worker, std::span<const int64_t> tokens, int64_t first, int64_t rows,
                      int64_t row_tokens, const Merging& merging);
  void train_pass(int thread, int64_t rows, float scale, bool last, const GradientsReady& ready);
  void merge_gradients(int thread, int64_t begin, int64_t end);
  void add_embedding_gradients(int thread);

  ModelConfig config_;
  ParameterLayout layout_;
  ThreadTeam& team_;
  int64_t num_models_;
  std::vector<Lane> lanes_;       // of several models
  Keep keep_ = Keep::everything;  // of a training step
  RotaryTable rotary_;
  std::vector<Worker> workers_;
  std::vector<LossTokens> loss_tokens_;  // of the passes in work
  std::unique_ptr<FusedLoss> loss_;      // from the first training step on
  double loss_sum_ = 0;
  float* parameters_ = nullptr;
  float* gradients_ = nullptr;
};

}  // namespace smalltalk
