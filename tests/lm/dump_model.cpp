// Writes a random model and what it computes, for test_peer_transformers.py to compare with:
// dump_model KIND FOLDER, KIND one of swiglu, swiglu_untied, relu2, documents, lory, lory_prefix,
// lory_relu2.
#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "fixtures.hpp"
#include "smalltalk/lm/model/hidden_states.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/train/trainer.hpp"

using namespace smalltalk;

constexpr int64_t kEnd = 2;

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string kind = argv[1];
  const std::filesystem::path folder = argv[2];
  ModelConfig config = tiny_model();
  config.vocab_size = 97;
  config.hidden_size = 32;
  config.init_std = config.embedding_std = 0.1;
  if (kind == "swiglu_untied") {
    config.tie_embeddings = false;
    config.num_kv_heads = 2;
  } else if (kind == "relu2") {
    config.feed_forward = FeedForward::relu2;
  } else if (kind == "documents") {
    config.document_end = kEnd;
    config.document_mask = true;
  } else if (kind.starts_with("lory")) {
    config = merging(config, 3, 12);
    config.first_segment = FirstSegment::uniform;  // or the loss would not be that of the logits
    if (kind == "lory_prefix") {
      config.routing = SegmentRouting::prefix;
      config.merged_layers = "1";
      config.tie_embeddings = false;
      config.num_kv_heads = 2;
    } else if (kind == "lory_relu2") {
      config.feed_forward = FeedForward::relu2;
      config.merged_layers = "0";
    }
  } else if (kind != "swiglu") {
    return 2;
  }
  constexpr int64_t kRows = 3, kRowTokens = 80;
  Transformer model(config, DeviceConfig(), 17);
  model.save(folder, {{"smalltalk.seq_length", std::to_string(kRowTokens)}});

  auto tokens = random_tokens(kRows * kRowTokens, config.vocab_size, 23);
  if (kind == "documents") {  // of 1 token and more, and padding at the end of each row
    std::ranges::replace(tokens, kEnd, kEnd + 1);
    for (int64_t row = 0; row < kRows; ++row) {
      for (const int64_t end : {0, 2, 35, 36 + static_cast<int>(row), 70, 76, 77, 78, 79}) {
        tokens[row * kRowTokens + end] = kEnd;
      }
    }
  }
  const std::vector<float> token_values(tokens.begin(), tokens.end());
  const std::vector<float> logits = model.logits(tokens, kRows, kRowTokens);
  // Of all tokens but a row's last, and of the first 40.
  const RowSource rows{kRowTokens, [&](int64_t first, int64_t count, std::span<int64_t> out) {
                         std::copy_n(tokens.begin() + first * kRowTokens, count * kRowTokens,
                                     out.begin());
                       }};
  std::vector<float> hidden;
  for (const int64_t length : {kRowTokens - 1, int64_t{40}}) {
    visit_hidden_sums(model, rows, std::vector<int64_t>(kRows, length),
                      [&](int64_t, std::span<const double> sum) {
                        hidden.insert(hidden.end(), sum.begin(), sum.end());
                      });
  }
  double loss = 0;
  const auto gradients = loss_gradients(model, tokens, kRows, kRowTokens, &loss);
  std::map<std::string, TensorView> tensors = {
      {"tokens", {{kRows, kRowTokens}, token_values}},
      {"logits", {{kRows, kRowTokens, config.vocab_size}, logits}},
      {"hidden_sums", {{2, kRows, config.hidden_size}, hidden}}};
  for (const auto& [name, values] : gradients) {
    tensors["gradient." + name] = {{static_cast<int64_t>(values.size())}, values};
  }
  char text[32];
  std::snprintf(text, sizeof(text), "%.17g", loss);
  write_safetensors(folder / "expected.safetensors", tensors, {{"loss", text}});
  return 0;
}
