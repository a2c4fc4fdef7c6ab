// Text from a trained mixture: the routers choose an expert by the beginning of each text, and that
// expert writes on. One process; one model in memory at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "smalltalk/lm/model/sampling.hpp"
#include "smalltalk/lm/torch/decoder.hpp"
#include "smalltalk/mixture/run/run.hpp"

namespace smalltalk {

struct GenerateOptions {
  SamplingOptions sampling;
  uint64_t seed = 0;
  int64_t max_new_tokens = 128;
  int64_t prefix_tokens = 0;  // route on so many tokens; 0: the routers' M
  int64_t batch_size = 8;     // texts that are written side by side
  std::string model;          // "baselines/dense", "experts/3": it writes, nobody routes
  // Of models that merge experts, else an Error; nothing: by the prompt.
  std::optional<MergeBy> merging;
};

// Who wrote a part of a text.
struct Speaker {
  std::string model;
  int64_t from = 0;  // the first of the new tokens that it wrote
};

struct GeneratedText {
  std::string text;  // without the prompt
  int64_t prompt_tokens = 0;
  int64_t prompt_tokens_cut = 0;  // the first ones, which the writing model does not see
  int64_t new_tokens = 0;
  bool ended = false;  // by the end-of-text token; else at max_new_tokens or at seq_length
  std::vector<Speaker> speakers;
  // Log-likelihoods in nats under each router, of the tokens that the last choice was made by; [E].
  // Empty if nobody routed.
  std::vector<double> scores;
  // As Decoder::expert_weights() at the text's end, of the model that wrote last.
  std::vector<std::vector<float>> expert_weights;
};

// A text begins, as documents do in training, after an end-of-text token. Where there are fewer
// tokens than the prefix, the routers choose by those that there are (if that is only the first, of
// which they say nothing, the seed chooses), and once more when the text has as many as the prefix;
// if they then choose another expert, it writes on. A text is a function of the run, the prompts,
// the options and the batch size.
// `progress` is told the number of texts that are finished. Errors: a model is missing; experts and
// routers do not belong together.
// Of a prompt that leaves no room within seq_length the routers read the beginning as ever; the
// model that writes sees its newest tokens, which a warning says. The text ends at seq_length.
std::vector<GeneratedText> generate(const Run& run, const std::vector<std::string>& prompts,
                                    const GenerateOptions& options,
                                    const std::function<void(int64_t)>& progress = {});

}  // namespace smalltalk
