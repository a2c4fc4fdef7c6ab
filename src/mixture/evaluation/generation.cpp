#include "smalltalk/mixture/evaluation/generation.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/mixture/run/provenance.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {
namespace {

struct Text {
  std::vector<int64_t> tokens;     // the end-of-text token, the prompt, what was written
  std::vector<int64_t> beginning;  // of a text of which `tokens` holds the newest only
  int64_t prompt_size = 0;         // with the end-of-text token
  int64_t last_size = 0;           // there it ends
  int64_t index = 0;               // of its prompt
  int64_t routed_by = 0;           // tokens that the last choice was made by
  bool ended = false;
  GeneratedText result;

  int64_t size() const { return std::ssize(tokens); }
  std::span<const int64_t> read_by_routers() const {
    return beginning.empty() ? tokens : beginning;
  }
  bool done() const { return ended || size() == last_size; }
};

class Generation {
 public:
  Generation(const Run& run, const GenerateOptions& options)
      : experiment_(run.experiment),
        layout_(run.layout),
        options_(options),
        tokenizer_(layout_.tokenizer()),
        prefix_(options.prefix_tokens == 0 ? experiment_.mixture.prefix_tokens
                                           : options.prefix_tokens) {}

  std::vector<GeneratedText> run(const std::vector<std::string>& prompts,
                                 const std::function<void(int64_t)>& progress);

 private:
  Text begin(const std::string& prompt, int64_t index) const;
  bool to_be_routed(const Text& text) const;
  void route(const std::vector<Text*>& texts) const;
  // Lets a model write the texts, each until it is done or to be routed.
  void write(const std::string& model, const std::vector<Text*>& texts,
             const std::function<void()>& one_done) const;
  void append(Text& text, std::span<const float> logits) const;

  const Experiment& experiment_;
  const RunLayout& layout_;
  const GenerateOptions& options_;
  Tokenizer tokenizer_;
  int64_t prefix_;
};

Text Generation::begin(const std::string& prompt, int64_t index) const {
  Text text;
  text.index = index;
  text.tokens = {kEndToken};
  for (const int32_t id : tokenizer_.encode(prompt)) text.tokens.push_back(id);
  text.result.prompt_tokens = text.size() - 1;
  const int64_t longest = experiment_.data.seq_length;
  if (text.size() >= longest) {
    const int64_t kept = longest - std::min(options_.max_new_tokens, longest / 2) - 1;
    text.result.prompt_tokens_cut = text.size() - 1 - kept;
    text.beginning.assign(text.tokens.begin(), text.tokens.begin() + prefix_);
    text.tokens.erase(text.tokens.begin() + 1, text.tokens.end() - kept);
    log_warning(fmt::format(
        "prompt {} has {} tokens, the models' sequences {} (seq_length): routers read its "
        "beginning, the expert its last {}",
        index + 1, text.result.prompt_tokens, longest, kept));
  }
  text.prompt_size = text.size();
  const int64_t room = longest - text.size();
  text.last_size = text.size() + std::min(room, options_.max_new_tokens);
  return text;
}

bool Generation::to_be_routed(const Text& text) const {
  if (!options_.model.empty()) return false;
  const int64_t readable = std::ssize(text.read_by_routers());
  return text.routed_by == 0 || (text.routed_by < prefix_ && readable >= prefix_);
}

void Generation::route(const std::vector<Text*>& texts) const {
  if (texts.empty()) return;  // no router is read for nothing
  const int64_t experts = experiment_.mixture.experts;
  for (Text* text : texts) {
    text->routed_by = std::min(prefix_, std::ssize(text->read_by_routers()));
    text->result.scores.assign(static_cast<size_t>(experts), 0.0);
  }
  for (int64_t e = 0; e < experts; ++e) {
    const Transformer router = Transformer::load(layout_.router(e), experiment_.device);
    for (Text* text : texts) {
      if (text->routed_by < 2) continue;  // the first token is given, not scored
      const auto row = text->read_by_routers().first(static_cast<size_t>(text->routed_by));
      text->result.scores[static_cast<size_t>(e)] = log_likelihood(router, row);
    }
  }
  for (Text* text : texts) {
    const std::vector<double>& scores = text->result.scores;
    auto chosen =
        static_cast<uint64_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
    if (text->routed_by < 2) {
      chosen = derive_seed(options_.seed, "expert of a text", static_cast<uint64_t>(text->index)) %
               static_cast<uint64_t>(experts);
    }
    const std::string model = expert_name(static_cast<int64_t>(chosen));
    std::vector<Speaker>& speakers = text->result.speakers;
    if (speakers.empty() || speakers.back().model != model) {
      speakers.push_back({model, text->size() - text->prompt_size});
    }
  }
}

void Generation::append(Text& text, std::span<const float> logits) const {
  const double draw =
      unit_interval(derive_seed(options_.seed, "next token", static_cast<uint64_t>(text.index),
                                static_cast<uint64_t>(text.size())));
  const int64_t token = sample_token(logits, options_.sampling, draw);
  text.tokens.push_back(token);
  text.ended = token == kEndToken;
}

void Generation::write(const std::string& name, const std::vector<Text*>& texts,
                       const std::function<void()>& one_done) const {
  const Transformer model = Transformer::load(layout_.model(name), experiment_.device);
  if (options_.merging && !model.config().merges_experts()) {
    throw Error(fmt::format("--merge has no effect: {} merges no experts", name));
  }
  const int64_t rows = std::min(options_.batch_size, std::ssize(texts));
  const int64_t vocab = model.config().vocab_size;
  Decoder decoder(model, rows, experiment_.data.seq_length,
                  options_.merging.value_or(MergeBy::prompt));
  std::vector<Text*> in_row(static_cast<size_t>(rows), nullptr);
  // Whether the row is free again.
  const auto leave = [&](int64_t row) {
    Text*& text = in_row[static_cast<size_t>(row)];
    if (!text->done() && !to_be_routed(*text)) return false;
    if (text->done()) one_done();
    text->result.expert_weights = decoder.expert_weights(row);
    decoder.end(row);
    text = nullptr;
    return true;
  };
  for (size_t next = 0, active = 0; next < texts.size() || active > 0;) {
    for (int64_t row = 0; row < rows && next < texts.size(); ++row) {
      if (in_row[static_cast<size_t>(row)] != nullptr) continue;
      Text* text = in_row[static_cast<size_t>(row)] = texts[next++];
      append(*text, decoder.begin(row, text->tokens));
      if (!leave(row)) ++active;
    }
    if (active == 0) continue;
    std::vector<int64_t> last(static_cast<size_t>(rows), 0);
    for (int64_t row = 0; row < rows; ++row) {
      if (const Text* text = in_row[static_cast<size_t>(row)]) {
        last[static_cast<size_t>(row)] = text->tokens.back();
      }
    }
    const std::vector<float> logits = decoder.step(last);
    for (int64_t row = 0; row < rows; ++row) {
      Text* text = in_row[static_cast<size_t>(row)];
      if (text == nullptr) continue;
      append(*text, std::span(logits).subspan(static_cast<size_t>(row * vocab),
                                              static_cast<size_t>(vocab)));
      if (leave(row)) --active;
    }
  }
}

std::vector<GeneratedText> Generation::run(const std::vector<std::string>& prompts,
                                           const std::function<void(int64_t)>& progress) {
  std::vector<Text> texts;
  for (const std::string& prompt : prompts) texts.push_back(begin(prompt, std::ssize(texts)));
  int64_t finished = 0;
  const auto one_done = [&] {
    if (progress) progress(++finished);
  };
  const auto pick = [&](const auto& condition) {
    std::vector<Text*> picked;
    for (Text& text : texts) {
      if (!text.done() && condition(text)) picked.push_back(&text);
    }
    return picked;
  };
  for (;;) {
    route(pick([&](const Text& text) { return to_be_routed(text); }));
    std::map<std::string, std::vector<Text*>> of_model;
    for (Text* text : pick([](const Text&) { return true; })) {
      std::vector<Speaker>& speakers = text->result.speakers;
      if (speakers.empty()) speakers.push_back({options_.model, 0});
      of_model[speakers.back().model].push_back(text);
    }
    if (of_model.empty()) break;
    for (const auto& [model, its_texts] : of_model) write(model, its_texts, one_done);
  }
  std::vector<GeneratedText> results;
  for (Text& text : texts) {
    const auto end = text.tokens.end() - (text.ended ? 1 : 0);
    text.result.text = tokenizer_.decode({text.tokens.begin() + text.prompt_size, end});
    text.result.new_tokens = text.size() - text.prompt_size;
    text.result.ended = text.ended;
    results.push_back(std::move(text.result));
  }
  return results;
}

}  // namespace

std::vector<GeneratedText> generate(const Run& run, const std::vector<std::string>& prompts,
                                    const GenerateOptions& options,
                                    const std::function<void(int64_t)>& progress) {
  check_sampling(options.sampling);
  if (options.max_new_tokens < 1) throw Error("max_new_tokens must be 1 or more");
  if (options.batch_size < 1) throw Error("the batch size must be 1 or more");
  const int64_t longest = run.experiment.mixture.prefix_tokens;
  if (options.prefix_tokens < 0 || options.prefix_tokens > longest) {
    throw Error(fmt::format("the routers were trained on prefixes of {} tokens: route on 1 to {}",
                            longest, longest));
  }
  std::vector<TrainUnit> units = units_of(run);
  if (options.model.empty()) {
    require_mixture(run);
    std::erase_if(units, [](const TrainUnit& unit) { return unit.kind->role != Role::mixture; });
    require_one_mixture(run, units);
  } else {
    find_unit(units, options.model);
  }
  return Generation(run, options).run(prompts, progress);
}

}  // namespace smalltalk
