// A token file made by hand: even sequences walk up the alphabet, odd ones walk down. With a prefix
// of two tokens nothing but the router can tell which way it goes: one that has seen a single kind
// is certain of the second token, one that has seen both has to halve its bets.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>

#include "smalltalk/core/system/random.hpp"
#include "smalltalk/data/prepare.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/runtime.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {

class MixtureFixture : public ::testing::Test {
 protected:
  static constexpr int64_t kLength = 16;  // S

  void SetUp() override {
    layout.root = folder / "run";

    experiment.data.seq_length = kLength;
    experiment.mixture.experts = 2;
    experiment.mixture.prefix_tokens = 2;
    experiment.mixture.rounds = 10;
    experiment.mixture.sequences_per_round = 1024;
    experiment.router_model.hidden_size = 16;
    experiment.router_model.num_layers = 1;
    experiment.router_model.num_heads = 2;
    experiment.router_train.batch_size = 8;
    experiment.router_train.lr = 2e-2;
    experiment.router_train.lr_decay = Decay::constant;
    experiment.expert_model = experiment.router_model;
    experiment.expert_train.steps = 10;
    experiment.expert_train.batch_size = 8;

    write_tokens();
    experiment.router_model.vocab_size = run.tokens->info().vocab_size;
    experiment.expert_model.vocab_size = run.tokens->info().vocab_size;
    configure_runtime(experiment.device, 0);
  }

  // Goes through the real tokenizer: one document of exactly one sequence each (S - 1 letters and
  // the end token).
  void write_tokens() {
    const std::filesystem::path text = folder / "text.jsonl";
    std::ofstream out(text);
    for (uint64_t i = 0; i < 1200; ++i) {
      std::string word;
      for (uint64_t k = 0; k < kLength - 1; ++k) {
        const uint64_t first = derive_seed(5, "first letter", i) % 26;
        word += static_cast<char>('a' + (first + (i % 2 == 0 ? k : 25 * k)) % 26);
      }
      out << "{\"text\": \"" << word << "\"}\n";
    }
    out.close();
    // A vocabulary of bytes and single letters: one token a letter.
    train_tokenizer({text.string()}, kVocabulary, 1'000'000, folder / "tokenizer.model");
    PrepareOptions options;
    options.inputs = {text.string()};
    options.tokenizer = folder / "tokenizer.model";
    options.out = layout.tokens("train");
    prepare_tokens(options);
    open_tokens();
    ASSERT_EQ(run.tokens->info().num_tokens, 1200 * kLength);
  }
  void open_tokens() {
    run.tokens = std::make_shared<TokenFile>(layout.tokens("train"));
    run.provenance = {{"tokens", run.tokens->info().content_hash}};
  }
  static constexpr int64_t kVocabulary = 3 + 256 + 26;

  const TemporaryFolder folder;
  smalltalk::Run run;  // Test has a member of that name
  Experiment& experiment = run.experiment;
  RunLayout& layout = run.layout;
};

}  // namespace smalltalk
