// Output projection and softmax cross-entropy in one, in tiles: logits of tokens x vocabulary never
// exist. Tokens lie in the lanes of vectors and the vocabulary along rows, so that no product needs
// a transposed weight and no softmax a sum across lanes. H hidden, V vocabulary.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "lm/cpu/thread_team.hpp"

namespace smalltalk {

// The tokens of one thread.
struct LossTokens {
  int64_t count;
  const float* hidden;     // [count, H]
  const int64_t* targets;  // [count]; -1: none, which costs nothing
  float* d_hidden;         // [count, H], written
};

// A team's threads each hold a part of the vocabulary, for all tokens: the gradient of the
// projection then needs no copy per thread, and the logits of a tile of tokens are shared out. Per
// tile the threads meet once, to join their maxima and sums. A chunk of the vocabulary is
// projected, exponentiated under the running maximum, and multiplied into the gradient of the
// hidden state while it is in cache (online softmax: Milakov and Gimelshein, 2018); its
// exponentials are kept for the gradient of the projection, which needs the final sums.
class FusedLoss {
 public:
  FusedLoss(int64_t hidden, int64_t vocab, ThreadTeam& team);

  // To be called by all threads of the team at once. The sum of -log p(target) over all tokens, in
  // nats, is returned on thread 0. Writes d_hidden of all tokens, adds to d_head [V, H] the
  // gradients of `scale` times that sum. head [V, H].
  double run(int thread, std::span<const LossTokens> tokens, const float* head, float scale,
             float* d_head);

  // Floats that all threads together keep.
  static int64_t memory_floats(int64_t hidden, int64_t vocab, int threads);

 private:
  // What the threads tell each other of a tile; two sets, so that one meeting per tile is enough.
  struct Published {
    std::vector<float> maximum, sum, logit;  // [tile]
    std::vector<float> d_hidden;             // [H, tile], to be divided by the sum
  };
  struct Worker {
    int64_t begin = 0, end = 0;  // of the vocabulary
    Published published[2];
    int turn = 0;
    std::vector<float> input;          // [H, tile]
    std::vector<float> exponentials;   // [end - begin, tile]
    std::vector<float> shifts;         // [chunks, tile]: the maximum that a chunk was shifted by
    std::vector<float> factor;         // [tile]
    std::vector<float> scaled;         // [tile, H]
    std::vector<float> maximum, gain;  // [tile], over all threads
  };
  void project(Worker& worker, const LossTokens& tile, const float* head);
  double join(int thread, const LossTokens& tile, const float* head, float scale);
  void head_gradients(Worker& worker, const LossTokens& tile, float scale, float* d_head);

  int64_t hidden_, vocab_, tile_;
  ThreadTeam& team_;
  std::vector<Worker> workers_;
};

// log_probs [count] <- log p(target), and greedy [count] <- 1 where no word is likelier, else 0; 0
// and 1 where there is no target. On one thread. `scratch` holds log_probs_scratch_size(H).
int64_t log_probs_scratch_size(int64_t hidden);
void target_log_probs(int64_t count, int64_t hidden_size, int64_t vocab, const float* hidden,
                      const float* head, const int64_t* targets, float* log_probs, uint8_t* greedy,
                      float* scratch);

}  // namespace smalltalk
