// Trains a small model for 200 steps and writes all that a peer needs to do the same:
// dump_training KIND FOLDER DEVICE, KIND swiglu, relu2 or lory (swiglu merged from 4 experts for
// every 8 tokens), DEVICE cpu (in float32) or cuda (in bfloat16). FOLDER/start and FOLDER/end are
// models, FOLDER/rows.safetensors holds the rows in the order of training, FOLDER/run/metrics.jsonl
// the loss and gradient norm of every step.
#include <filesystem>
#include <string>

#include "fixtures.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/lm/train/trainer.hpp"

using namespace smalltalk;

namespace {

constexpr int64_t kVocab = 512, kRowTokens = 33, kBatch = 8, kSteps = 200;

// A language that can be learned: each token follows from the one before, in two ways.
void fill(int64_t first, int64_t count, std::span<int64_t> tokens) {
  for (int64_t row = 0; row < count; ++row) {
    const auto random = random_tokens(kRowTokens, kVocab, static_cast<uint64_t>(first + row + 1));
    int64_t* line = tokens.data() + row * kRowTokens;
    line[0] = random[0];
    for (int64_t t = 1; t < kRowTokens; ++t) {
      line[t] = (5 * line[t - 1] + (random[t] % 4 == 0 ? 17 : 3)) % kVocab;
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const std::string kind = argv[1];
  const std::filesystem::path folder = argv[2];
  ModelConfig config;
  config.vocab_size = kVocab;
  config.hidden_size = 64;
  config.num_layers = 2;
  config.num_heads = 4;
  config.feed_forward = kind == "relu2" ? FeedForward::relu2 : FeedForward::swiglu;
  if (kind == "lory") {
    config.merged_experts = 4;
    config.segment_tokens = 8;
  }
  DeviceConfig device;
  device.threads = 2;
  device.device = argv[3];
  if (device.device == "cuda") device.precision = "bf16-mixed";
  configure_runtime(device, 0);
  Transformer model(config, device, 17);
  model.save(folder / "start", {});

  std::vector<int64_t> tokens(kSteps * kBatch * kRowTokens);
  fill(0, kSteps * kBatch, tokens);
  const std::vector<float> values(tokens.begin(), tokens.end());
  write_safetensors(folder / "rows.safetensors", {{"rows", {{kSteps, kBatch, kRowTokens}, values}}},
                    {});

  TrainConfig train;
  train.steps = kSteps;
  train.batch_size = kBatch;
  train.micro_batch_size = 4;
  train.lr = 5e-3;
  train.min_lr = 5e-4;
  train.warmup_steps = 20;
  train.log_interval = 1;
  train.save_interval = 0;
  TrainOptions options;
  options.name = kind;
  options.folder = folder / "run";
  options.show_progress = false;
  Trainer(model, train, options).run({kRowTokens, fill}, kSteps);
  model.save(folder / "end", {});
  return 0;
}
