// Text from a trained run, against routing and decoding written out without cache and batches.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <sstream>

#include "job_runner.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/mixture/evaluation/generation.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

struct Expected {
  std::string text;
  std::vector<std::string> speakers;
};

class Generate : public JobTest {
 protected:
  void SetUp() override {
    JobTest::SetUp();
    const Outcome outcome = run_job(
        2, launch("run",
                  "--set baselines.random_shards=false --set baselines.dense_large_batch=false"));
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
    run_ = open_run(folder_ / "run");
  }

  // The expert whose router likes these tokens best.
  int64_t route(std::vector<int64_t> tokens) const {
    const auto size = std::min<int64_t>(std::ssize(tokens), run_.experiment.mixture.prefix_tokens);
    tokens.resize(static_cast<size_t>(size));
    int64_t best = 0;
    double highest = -INFINITY;
    for (int64_t e = 0; e < run_.experiment.mixture.experts; ++e) {
      const Transformer router = Transformer::load(run_.layout.router(e), run_.experiment.device);
      const double score = log_likelihood(router, tokens);
      if (score > highest) best = e;
      highest = std::max(highest, score);
    }
    return best;
  }

  // The likeliest token, or nothing if it ends the text, by a pass over everything before it.
  static std::optional<int64_t> likeliest(const Transformer& model,
                                          const std::vector<int64_t>& tokens) {
    const std::vector<float> logits = model.logits(tokens, 1, std::ssize(tokens));
    const auto last = logits.end() - model.config().vocab_size;
    const int64_t token = std::max_element(last, logits.end()) - last;
    return token == kEndToken ? std::nullopt : std::optional(token);
  }

  // The likeliest token again and again.
  Expected greedy(const std::string& prompt, int64_t max_new_tokens) const {
    const Tokenizer tokenizer(run_.layout.tokenizer());
    std::vector<int64_t> tokens = {kEndToken};
    for (const int32_t id : tokenizer.encode(prompt)) tokens.push_back(id);
    const size_t given = tokens.size();
    Expected result;
    std::optional<Transformer> expert;
    size_t routed_by = 0;
    const auto prefix = static_cast<size_t>(run_.experiment.mixture.prefix_tokens);
    while (std::ssize(tokens) < run_.experiment.data.seq_length &&
           tokens.size() < given + static_cast<size_t>(max_new_tokens)) {
      if (routed_by == 0 || (routed_by < prefix && tokens.size() >= prefix)) {
        routed_by = std::min(prefix, tokens.size());
        const std::string name = "experts/" + std::to_string(route(tokens));
        if (result.speakers.empty() || result.speakers.back() != name) {
          result.speakers.push_back(name);
        }
        expert.emplace(Transformer::load(run_.layout.model(name), run_.experiment.device));
      }
      const std::optional<int64_t> token = likeliest(*expert, tokens);
      if (!token) break;
      tokens.push_back(*token);
    }
    result.text = tokenizer.decode({tokens.begin() + static_cast<ptrdiff_t>(given), tokens.end()});
    return result;
  }

  std::string command(const std::string& arguments) const {
    return "timeout 60 " + from_environment("SMALLTALK_BINARY") + " generate " +
           run_.layout.root.string() + " " + arguments;
  }

  smalltalk::Run run_;  // Test has a member of that name
};

TEST_F(Generate, WritesWhatItsDefinitionSays) {
  std::vector<std::string> prompts = {
      "a", "z", "ma no", "gab fed cab dab", "stuv wxyz", "mnop qrs nop qrs mon"};
  for (const int64_t batch_size : {1, 2, 8}) {
    SCOPED_TRACE(batch_size);
    GenerateOptions options;
    options.sampling.temperature = 0;
    options.max_new_tokens = 20;
    options.batch_size = batch_size;
    int64_t told = 0;
    const auto texts = generate(run_, prompts, options, [&](int64_t done) { told = done; });
    EXPECT_EQ(told, std::ssize(prompts));
    std::set<std::string> speakers;
    for (size_t i = 0; i < prompts.size(); ++i) {
      SCOPED_TRACE(prompts[i]);
      const Expected expected = greedy(prompts[i], options.max_new_tokens);
      EXPECT_EQ(texts[i].text, expected.text);
      std::vector<std::string> found;
      for (const Speaker& speaker : texts[i].speakers) found.push_back(speaker.model);
      EXPECT_EQ(found, expected.speakers);
      speakers.insert(found.begin(), found.end());
    }
    EXPECT_GT(speakers.size(), 1u);
  }
}

TEST_F(Generate, DrawsBySeedAndPrompt) {
  GenerateOptions options;
  const std::vector<std::string> prompts = {"", "", "ab", "ab"};
  const auto texts_of = [&](uint64_t seed) {
    options.seed = seed;
    std::vector<std::string> texts;
    for (const GeneratedText& text : generate(run_, prompts, options)) {
      texts.push_back(text.text);
    }
    return texts;
  };
  const auto first = texts_of(1);
  EXPECT_EQ(first, texts_of(1));
  EXPECT_NE(first, texts_of(2));
  EXPECT_NE(first[0], first[1]);
  EXPECT_NE(first[2], first[3]);

  // Nothing is known of an empty prompt: its expert is drawn, for each anew.
  options.max_new_tokens = 1;
  std::set<std::string> drawn;
  for (const auto& text : generate(run_, std::vector<std::string>(40), options)) {
    drawn.insert(text.speakers.at(0).model);
  }
  EXPECT_EQ(drawn.size(), 4u);

  options.model = "baselines/dense";
  const auto dense = generate(run_, prompts, options);
  EXPECT_EQ(dense[0].speakers.size(), 1u);
  EXPECT_EQ(dense[0].speakers[0].model, "baselines/dense");
  EXPECT_TRUE(dense[0].scores.empty());
}

// The routers read the beginning, as of any text; the expert the newest tokens.
TEST_F(Generate, OfALongPromptTheNewestTokensAreSeen) {
  std::string prompt = "gab fed cab dab ";
  for (int i = 0; i < 60; ++i) prompt += "stuv wxyz ";
  const Tokenizer tokenizer(run_.layout.tokenizer());
  std::vector<int64_t> tokens = {kEndToken};
  for (const int32_t id : tokenizer.encode(prompt)) tokens.push_back(id);
  const int64_t length = run_.experiment.data.seq_length;
  ASSERT_GT(std::ssize(tokens), 2 * length);
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_new_tokens = 5;
  const GeneratedText text = generate(run_, {prompt}, options)[0];
  EXPECT_EQ(text.prompt_tokens, std::ssize(tokens) - 1);
  EXPECT_EQ(text.prompt_tokens - text.prompt_tokens_cut, length - 5 - 1);
  const std::string name = "experts/" + std::to_string(route(tokens));
  ASSERT_EQ(text.speakers.size(), 1u);
  EXPECT_EQ(text.speakers[0].model, name);

  std::vector<int64_t> seen = {kEndToken};
  seen.insert(seen.end(), tokens.end() - (length - 6), tokens.end());
  const Transformer expert = Transformer::load(run_.layout.model(name), run_.experiment.device);
  std::vector<int32_t> written;
  while (std::ssize(seen) < length) {
    const std::optional<int64_t> token = likeliest(expert, seen);
    if (!token) break;
    seen.push_back(*token);
    written.push_back(static_cast<int32_t>(*token));
  }
  EXPECT_EQ(text.text, tokenizer.decode({written.begin(), written.end()}));
}

// A model that merges experts for each segment, in the place of the dense one.
TEST_F(Generate, MergedExpertsAreWeighedByThePromptOrBySegments) {
  const std::filesystem::path folder = run_.layout.model("baselines/dense");
  ModelConfig config = Transformer::load(folder, run_.experiment.device).config();
  config.merged_experts = 3;
  config.segment_tokens = 4;
  config.init_std = config.embedding_std = 0.3;
  const Transformer model(config, run_.experiment.device, 1);
  model.save(folder, {});
  const Tokenizer tokenizer(run_.layout.tokenizer());
  GenerateOptions options;
  options.sampling.temperature = 0;
  options.max_new_tokens = 12;
  options.model = "baselines/dense";
  const std::vector<std::string> prompts = {"gab fed cab dab", "z", "stuv wxyz"};
  const auto by_default = generate(run_, prompts, options);
  options.merging = MergeBy::prompt;
  const auto by_prompt = generate(run_, prompts, options);
  options.merging = MergeBy::segments;
  const auto by_segments = generate(run_, prompts, options);
  for (size_t i = 0; i < prompts.size(); ++i) {
    SCOPED_TRACE(prompts[i]);
    std::vector<int64_t> tokens = {kEndToken};
    for (const int32_t id : tokenizer.encode(prompts[i])) tokens.push_back(id);
    std::vector<int32_t> written;
    while (std::ssize(written) < options.max_new_tokens) {
      const std::optional<int64_t> token = likeliest(model, tokens);
      if (!token) break;
      tokens.push_back(*token);
      written.push_back(static_cast<int32_t>(*token));
    }
    EXPECT_EQ(by_segments[i].text, tokenizer.decode(written));
    EXPECT_EQ(by_default[i].text, by_prompt[i].text);
    EXPECT_EQ(by_default[i].expert_weights, by_prompt[i].expert_weights);
    EXPECT_NE(by_segments[i].expert_weights, by_prompt[i].expert_weights);
  }

  const Outcome outcome =
      run_command(command("'gab fed cab dab' --model baselines/dense --merge segments --json "
                          "--temperature 0 --max-new-tokens 12"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  const auto row = nlohmann::json::parse(outcome.output.substr(outcome.output.find("{\"")));
  EXPECT_EQ(row.at("text"), by_segments[0].text);
  const auto weights = row.at("expert_weights").get<std::vector<std::vector<float>>>();
  ASSERT_EQ(weights.size(), static_cast<size_t>(config.num_layers));
  for (size_t layer = 0; layer < weights.size(); ++layer) {
    ASSERT_EQ(weights[layer].size(), 3u);
    for (size_t e = 0; e < 3; ++e) {  // beside no other texts, which rounds differently
      EXPECT_NEAR(weights[layer][e], by_segments[0].expert_weights[layer][e], 1e-5);
    }
  }
}

// Prompts of files, as text to train on is read.
TEST_F(Generate, PromptsAreReadAsDocumentsAre) {
  const auto prompts_of = [&](const std::string& name, const std::string& bytes) {
    std::ofstream(folder_ / name) << bytes;
    const Outcome outcome =
        run_command(command("--json --max-new-tokens 1 --prompts " + (folder_ / name).string()));
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    std::vector<std::string> prompts;
    std::istringstream lines(outcome.output);
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with("{")) prompts.push_back(nlohmann::json::parse(line).at("prompt"));
    }
    return prompts;
  };
  using Prompts = std::vector<std::string>;
  EXPECT_EQ(prompts_of("a.txt", "\xEF\xBB\xBFThe old crane\r\n\r\n two\n"),
            (Prompts{"The old crane", " two"}));
  EXPECT_EQ(prompts_of("b.list", "one\ntwo"), (Prompts{"one", "two"}));
  EXPECT_EQ(
      prompts_of("c.jsonl", "{\"prompt\":\"one\",\"x\":NaN}\n\n\xEF\xBB\xBF{\"prompt\":\"\"}\r\n"),
      (Prompts{"one", ""}));
}

TEST_F(Generate, TheCommandSaysTheSameAndRefusesNonsense) {
  std::ofstream(folder_ / "prompts.jsonl") << "{\"prompt\": \"stuv\\nwxyz\"}\n{\"prompt\": \"\"}\n";
  const std::string file = (folder_ / "prompts.jsonl").string();
  const Outcome outcome =
      run_command(command("'gab fed' --prompts " + file + " --seed 5 --json --top-p 0.9"));
  ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  GenerateOptions options;
  options.seed = 5;
  options.sampling.top_p = 0.9;
  const std::vector<std::string> prompts = {"gab fed", "stuv\nwxyz", ""};
  const auto texts = generate(run_, prompts, options);
  std::istringstream lines(outcome.output.substr(outcome.output.find("{\"")));
  for (size_t i = 0; i < texts.size(); ++i) {
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    const auto row = nlohmann::json::parse(line);
    EXPECT_EQ(row.at("prompt"), prompts[i]);
    EXPECT_EQ(row.at("text"), texts[i].text);
    EXPECT_EQ(row.at("speakers").at(0).at("model"), texts[i].speakers[0].model);
    EXPECT_EQ(row.at("router_log_likelihoods").get<std::vector<double>>(), texts[i].scores);
  }
  for (const auto& [arguments, complaint] : std::vector<std::pair<std::string, std::string>>{
           {"--temperature -1 x", "temperature"},
           {"--top-p 0 x", "top_p"},
           {"--model experts/9 x", "experts/3, baselines/dense"},
           {"--prefix-tokens 9 x", "1 to 8"},
           {"--merge segments x", "--merge has no effect: experts/"},
           {"--prompts " + (folder_ / "train.jsonl").string(), "train.jsonl:1"},
           {"--prompts nowhere.txt", "nowhere.txt"}}) {
    const Outcome refused = run_command(command(arguments));
    EXPECT_EQ(refused.exit_code, 1) << refused.output;
    EXPECT_EQ(count_of(refused.output, "error: "), 1) << refused.output;
    EXPECT_EQ(count_of(refused.output, complaint), 1) << refused.output;
  }
  EXPECT_EQ(run_command(command("--no-such-option")).exit_code, 2);
  EXPECT_EQ(run_command(command("--merge often x")).exit_code, 2);
}

}  // namespace
}  // namespace smalltalk
