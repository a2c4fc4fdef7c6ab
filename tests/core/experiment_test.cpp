#include "smalltalk/core/experiment/experiment.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <set>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

class ExperimentFile : public testing::Test {
 protected:
  Experiment load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    write_text_atomically(folder_ / "e.toml", text);
    return load_experiment(folder_ / "e.toml", overrides);
  }

  // Expects an error whose text has all the parts.
  void refuses(const std::string& text, const std::vector<std::string>& parts,
               const std::vector<std::string>& overrides = {}) {
    const std::string error = complaint_of([&] { load(text, overrides); });
    for (const std::string& part : parts) {
      EXPECT_NE(error.find(part), std::string::npos) << "'" << part << "' is missing in: " << error;
    }
  }

  TemporaryFolder folder_;
};

std::vector<std::string> all_keys() {
  std::vector<std::string> keys;
  Experiment e;
  visit_fields(e, [&](const std::string& key, auto&, const char*) { keys.push_back(key); });
  return keys;
}

TEST_F(ExperimentFile, EmptyMeansTheDefaults) {
  EXPECT_EQ(to_toml(load("")), to_toml(Experiment{}));
}

TEST_F(ExperimentFile, ReadsEveryType) {
  const Experiment e = load(R"(
name = "all types"
seed = 7
[data]
train = ["a.txt", "b/*.jsonl"]
max_bad_fraction = 0.01
[mixture]
experts = 8
[router]
feed_forward = "relu2"
lr_decay = "constant"
tie_embeddings = false
rope_theta = 500000
[expert]
hidden_size = 96
train_steps = 1_000
lr = 5e-4
)");
  EXPECT_EQ(e.name, "all types");
  EXPECT_EQ(e.seed, 7U);
  EXPECT_EQ(e.data.train, (std::vector<std::string>{"a.txt", "b/*.jsonl"}));
  EXPECT_EQ(e.data.max_bad_fraction, 0.01);
  EXPECT_EQ(e.mixture.experts, 8);
  EXPECT_EQ(e.router_model.feed_forward, FeedForward::relu2);
  EXPECT_EQ(e.router_train.lr_decay, Decay::constant);
  EXPECT_FALSE(e.router_model.tie_embeddings);
  EXPECT_EQ(e.router_model.rope_theta, 500000);  // an integer will do
  EXPECT_EQ(e.expert_model.hidden_size, 96);
  EXPECT_EQ(e.expert_train.steps, 1000);
  EXPECT_EQ(e.expert_train.lr, 5e-4);
  EXPECT_EQ(e.expert_model.feed_forward, FeedForward::swiglu);
}

TEST_F(ExperimentFile, DottedKeysAreTheSameAsSections) {
  EXPECT_EQ(load("mixture.experts = 8").mixture.experts, 8);
}

TEST_F(ExperimentFile, ResolvedFileReadsBackTheSame) {
  const Experiment e = load(R"(
name = "quote \" backslash \\ newline \n tab \t bell \u0007 ümlaut"
[data]
train = ["x", ""]
[router]
lr = 0.1234567890123456789
adam_eps = 1e-20
rope_theta = 1e22
[expert]
feed_forward = "relu2"
min_lr = 3
lr = 3
)");
  EXPECT_EQ(e.name, "quote \" backslash \\ newline \n tab \t bell \a ümlaut");
  const std::string text = to_toml(e);
  const Experiment again = load(text);
  EXPECT_EQ(to_toml(again), text);
  EXPECT_EQ(again.name, e.name);
  EXPECT_EQ(again.data.train, e.data.train);
  EXPECT_EQ(again.router_train.lr, e.router_train.lr);
  EXPECT_EQ(again.router_train.adam_eps, e.router_train.adam_eps);
  EXPECT_EQ(experiment_hash(again), experiment_hash(e));
}

// Every field takes part: give each a value unlike its default through its own key.
TEST_F(ExperimentFile, EveryKeyIsReadAndWritten) {
  const std::set<std::string> free = {"name",
                                      "data.max_bad_fraction",
                                      "mixture.group_size",
                                      "router.micro_batch_size",
                                      "expert.micro_batch_size",
                                      "router.outlier_zscore",
                                      "expert.outlier_zscore",
                                      "router.outlier_skip",
                                      "expert.outlier_skip",
                                      "router.skip_nonfinite",
                                      "expert.skip_nonfinite",
                                      "router.log_interval",
                                      "router.recompute",
                                      "expert.recompute",
                                      "router.save_interval",
                                      "router.keep_last",
                                      "expert.keep_last",
                                      "router.keep_every",
                                      "expert.keep_every",
                                      "expert.log_interval",
                                      "expert.save_interval",
                                      "router.tensorboard",
                                      "expert.tensorboard",
                                      "device.threads",
                                      "device.flops_per_second",
                                      "device.trace_steps",
                                      "baselines.dense",
                                      "baselines.dense_large_batch",
                                      "baselines.random_shards",
                                      "baselines.tfidf_shards",
                                      "lory.tensor_parallel"};
  Experiment defaults;
  const std::string default_hash = experiment_hash(defaults);
  for (const std::string& wanted : all_keys()) {
    Experiment e;
    visit_fields(e, [&](const std::string& key, auto& field, const char*) {
      if (key != wanted) return;
      using Field = std::remove_reference_t<decltype(field)>;
      if constexpr (std::is_same_v<Field, std::string>) {
        field = "something else";
      } else if constexpr (std::is_same_v<Field, std::vector<std::string>>) {
        field.push_back("something");
      } else if constexpr (std::is_same_v<Field, bool>) {
        field = !field;
      } else if constexpr (std::is_same_v<Field, FeedForward>) {
        field = FeedForward::relu2;
      } else if constexpr (std::is_same_v<Field, Decay>) {
        field = Decay::constant;
      } else if constexpr (std::is_same_v<Field, Recompute>) {
        field = Recompute::full;
      } else if constexpr (std::is_same_v<Field, SegmentRouting>) {
        field = SegmentRouting::prefix;
      } else if constexpr (std::is_same_v<Field, FirstSegment>) {
        field = FirstSegment::uniform;
      } else if constexpr (std::is_same_v<Field, Sharding>) {
        field = Sharding::ngrams;
      } else if constexpr (std::is_same_v<Field, Packing>) {
        field = Packing::documents;
      } else if constexpr (std::is_same_v<Field, TextOrder>) {
        field = TextOrder::similar;
      } else if constexpr (std::is_same_v<Field, AssignmentMethod>) {
        field = AssignmentMethod::margin;
      } else {
        field += 1;
      }
    });
    EXPECT_NE(to_toml(e), to_toml(defaults)) << wanted;
    EXPECT_EQ(experiment_hash(e) == default_hash, free.contains(wanted)) << wanted;
  }
}

TEST_F(ExperimentFile, AKeyDecidesPartsOrNothing) {
  using Keys = std::vector<const char*>;
  const std::map<Part, Keys> own = {
      {Part::tokens, {"data.vocab_size=900", "data.tokenizer=t.model", "data.text_key=body"}},
      {Part::routing, {"router.lr=0.1", "mixture.experts=2", "mixture.prefix_tokens=9"}},
      {Part::expert,
       {"expert.weight_decay=0.2", "expert.hidden_size=128", "expert.batch_size=7",
        "mixture.sharding=ngrams"}},
      {Part::lory, {"lory.experts=8", "lory.segment_tokens=9", "lory.dense_warmup=0.2"}},
      {Part::schedule, {"expert.lr=0.1", "expert.train_steps=7", "baselines.dense_lr=0.1"}}};
  const Experiment usual = load("");
  for (const auto& [part, keys] : own) {
    for (const char* key : keys) {
      for (const auto& [other, its] : own) {
        EXPECT_EQ(part_hash(load("", {key}), other) != part_hash(usual, other), other == part)
            << key;
      }
    }
  }
  for (const char* both : {"seed=2", "data.seq_length=64"}) {
    EXPECT_NE(part_hash(load("", {both}), Part::routing), part_hash(usual, Part::routing)) << both;
    EXPECT_NE(part_hash(load("", {both}), Part::expert), part_hash(usual, Part::expert)) << both;
  }
  // Text is told by its content, and these leave what is computed as it is.
  for (const char* none : {"data.train=a.txt", "mixture.group_size=2", "expert.micro_batch_size=2",
                           "router.log_interval=3", "name=other"}) {
    for (const auto& [part, keys] : own) {
      EXPECT_EQ(part_hash(load("", {none}), part), part_hash(usual, part)) << none;
    }
  }
}

TEST_F(ExperimentFile, DifferencesAreNamedInOrder) {
  const auto found = differences(load("", {"expert.lr=0.1"}), load("", {"seed=3", "name=x"}));
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0].key, "name");
  EXPECT_EQ(found[0].here, "\"x\"");
  EXPECT_EQ(found[1].key, "seed");
  EXPECT_EQ(found[1].here, "3");
  EXPECT_EQ(found[2].key, "expert.lr");
  EXPECT_EQ(found[2].there, "0.1");
  EXPECT_TRUE(differences(load(""), load("")).empty());
}

TEST_F(ExperimentFile, OverridesWin) {
  const std::string text = "[mixture]\nexperts = 8\n";
  EXPECT_EQ(load(text, {"mixture.experts=2"}).mixture.experts, 2);
  EXPECT_EQ(load(text, {"mixture.experts=2", "mixture.experts=3"}).mixture.experts, 3);
  EXPECT_EQ(load(text, {"name=plain"}).name, "plain");
  EXPECT_EQ(load(text, {"name=\"in quotes\""}).name, "in quotes");
  EXPECT_EQ(load(text, {"name=a = b"}).name, "a = b");
  EXPECT_EQ(load(text, {"router.lr_decay=constant"}).router_train.lr_decay, Decay::constant);
  for (const Decay decay : {Decay::cosine, Decay::linear, Decay::wsd, Decay::wsd_sqrt}) {
    const std::string steps = decay >= Decay::wsd ? "9" : "0";
    EXPECT_EQ(load(text, {"router.lr_decay=" + to_string(decay), "router.decay_steps=" + steps})
                  .router_train.lr_decay,
              decay);
  }
  EXPECT_EQ(load(text, {"router.lr=1e-3"}).router_train.lr, 1e-3);
  EXPECT_EQ(load(text, {"data.train=data/some file.txt"}).data.train,
            std::vector<std::string>{"data/some file.txt"});
  EXPECT_EQ(load(text, {"data.train=[\"a\", \"b\"]"}).data.train,
            (std::vector<std::string>{"a", "b"}));
  EXPECT_FALSE(load(text, {"baselines.dense=false"}).baselines.dense);
  EXPECT_EQ(load(text, {"data.domain_key="}).data.domain_key, "");
}

TEST_F(ExperimentFile, BadOverridesAreRefused) {
  refuses("", {"--set", "section.key=value"}, {"mixture.experts"});
  refuses("", {"--set", "section.key=value"}, {"=3"});
  refuses("", {"--set mixture.expert=3", "did you mean 'mixture.experts'"}, {"mixture.expert=3"});
  refuses("", {"mixture.experts must be an integer, not a string"}, {"mixture.experts=four"});
  refuses("", {"not a TOML value"}, {"data.train=[\"a\""});
  refuses("", {"mixture.experts must be an integer, not a string"}, {"mixture.experts="});
  // A line end must not smuggle in a second key.
  refuses("", {"must be an integer"}, {"mixture.experts=3\nother=4"});
  // The resolved file would not be TOML, and the run could never be resumed.
  refuses("", {"--set name=", "not UTF-8"}, {"name=gr\xF6sse"});
}

TEST_F(ExperimentFile, UnknownKeysNameTheNearest) {
  refuses("[mixture]\n\nexpert = 4\n",
          {"e.toml:3", "unknown key 'mixture.expert'", "did you mean 'mixture.experts'"});
  refuses("experts = 4", {"did you mean 'mixture.experts'"});
  refuses("sed = 4", {"did you mean 'seed'"});
  refuses("[mixtures]\nexperts = 4", {"did you mean 'mixture.experts'"});
  refuses("[expert]\nlearning_decay = 4", {"unknown key 'expert.learning_decay'"});
  refuses("[router]\nsteps = 4", {"did you mean 'router.warmup_steps'"});
  refuses("[expert]\nsteps = 4", {"did you mean 'expert.train_steps'"});
  refuses("[router.model]\nhidden_size = 4", {"unknown key 'router.model'"});
  refuses("[nothing]", {"unknown key 'nothing'"});
  // One that is far from all is not guessed at.
  refuses("[expert]\ndropout = 0.1", {"unknown key 'expert.dropout' (--help-experiment"});
}

TEST_F(ExperimentFile, WrongTypesNameKeyAndLine) {
  refuses("[mixture]\nexperts = \"four\"",
          {"e.toml:2", "mixture.experts must be an integer, not a string"});
  refuses("[mixture]\nexperts = 4.0", {"mixture.experts must be an integer, not a float"});
  refuses("[router]\nlr = \"high\"", {"router.lr must be a number, not a string"});
  refuses("[router]\nlr = true", {"router.lr must be a number, not true or false"});
  refuses("[router]\nlr = nan", {"router.lr must be finite"});
  refuses("[router]\nlr = inf", {"router.lr must be finite"});
  refuses("[baselines]\ndense = 1", {"baselines.dense must be true or false, not an integer"});
  refuses("name = 3", {"name must be a string, not an integer"});
  refuses("name = 2020-01-01", {"name must be a string, not a date"});
  refuses("seed = -1", {"seed must not be negative"});
  refuses("[data]\ntrain = [\"a\", 3]", {"data.train[1] must be a string, not an integer"});
  refuses("[data]\ntrain = 3", {"data.train must be a list of strings"});
  refuses("[router]\nfeed_forward = \"gelu\"", {"router.feed_forward must be swiglu or relu2"});
  refuses("[router]\nlr_decay = 3", {"router.lr_decay must be a string"});
  refuses("mixture = 3", {"'mixture' is a section"});
  refuses("[name]\nx = 3", {"name must be a string, not a table"});
  refuses("[[mixture]]\nexperts = 3", {"'mixture' is a section"});
}

TEST_F(ExperimentFile, SyntaxErrorsNameTheLine) {
  refuses("name = \"a\"\n\n[mixture\n", {"e.toml:3"});
  refuses("seed = 1\nseed = 2\n", {"e.toml:2"});
  refuses("[{", {"e.toml:1"});
  refuses("[\x01\n", {"e.toml:1"});
}

TEST_F(ExperimentFile, HostileFilesAreRefusedQuickly) {
  const auto repeated = [](const std::string& text, size_t count) {
    std::string result;
    for (size_t i = 0; i < count; ++i) result += text;
    return result;
  };
  refuses("\n" + repeated("a.", 30'000) + "a = 1", {"e.toml:2", "dots"});
  refuses("[" + repeated("\"a\".", 10'000) + "a]", {"e.toml:1", "dots"});
  refuses(repeated("a.", 50) + "a = 1", {"e.toml:1", "unknown key"});
  refuses(repeated("a.", 1'000'000) + "a = 1", {"e.toml", "larger than"});
  refuses("name = " + repeated("[", 30'000), {"e.toml:1", "depth"});
  refuses(repeated("k", 60'000) + " = 1", {"e.toml:1", "unknown key 'kkk"});
  refuses("\"a\\u001b[31m\" = 1", {"unknown key 'a\\x1b[31m'"});
  refuses("name = \"\xff\"", {"e.toml:1"});
}

TEST_F(ExperimentFile, MissingFileIsAnError) {
  try {
    load_experiment(folder_ / "missing.toml", {});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("missing.toml"), std::string::npos);
  }
}

TEST_F(ExperimentFile, ImpossibleValuesAreRefusedWhenLoading) {
  refuses("[mixture]\nprefix_tokens = 500", {"mixture.prefix_tokens (500)", "data.seq_length"});
}

TEST_F(ExperimentFile, HelpHasALinePerKey) {
  const std::string help = experiment_help();
  for (const std::string& key : all_keys()) {
    EXPECT_NE(("\n" + help).find("\n" + key + " = "), std::string::npos) << key;
  }
}

TEST(ModelConfig, ZerosAreResolved) {
  ModelConfig model;
  model.hidden_size = 100;
  model.num_heads = 5;
  EXPECT_EQ(model.resolved().num_kv_heads, 5);
  EXPECT_EQ(model.resolved().intermediate_size, 272);  // 266.7, then a multiple of 8
  model.feed_forward = FeedForward::relu2;
  EXPECT_EQ(model.resolved().intermediate_size, 400);
  model.hidden_size = 96;
  model.feed_forward = FeedForward::swiglu;
  EXPECT_EQ(model.resolved().intermediate_size, 256);  // 8/3 of 96 exactly
  model.intermediate_size = 10;
  model.num_kv_heads = 1;
  EXPECT_EQ(model.resolved().intermediate_size, 10);
  EXPECT_EQ(model.resolved().num_kv_heads, 1);
}

struct Refusal {
  std::function<void(Experiment&)> change;
  std::vector<std::string> keys;  // that the text must name
};

TEST(ExperimentValidate, RefusesImpossibleCombinations) {
  const std::vector<Refusal> refusals = {
      {[](Experiment& e) { e.seed = ~uint64_t{0}; }, {"seed"}},
      {[](Experiment& e) { e.data.seq_length = 1; }, {"data.seq_length"}},
      {[](Experiment& e) { e.data.seq_length = INT64_MAX; }, {"data.seq_length"}},
      {[](Experiment& e) { e.data.vocab_size = INT64_MAX; }, {"data.vocab_size"}},
      {[](Experiment& e) { e.expert_model.hidden_size = int64_t{1} << 62; },
       {"expert.hidden_size must be at most"}},
      {[](Experiment& e) { e.router_model.intermediate_size = INT64_MAX; },
       {"router.intermediate_size must be at most"}},
      {[](Experiment& e) { e.router_model.num_layers = INT64_MAX; },
       {"router.num_layers must be at most"}},
      {[](Experiment& e) { e.expert_train.steps = INT64_MAX; }, {"expert.train_steps"}},
      {[](Experiment& e) { e.expert_train.batch_size = INT64_MAX; }, {"expert.batch_size"}},
      {[](Experiment& e) { e.data.vocab_size = 0; }, {"data.vocab_size"}},
      {[](Experiment& e) { e.data.tokenizer_sample_bytes = 0; }, {"data.tokenizer_sample_bytes"}},
      {[](Experiment& e) { e.data.max_bad_fraction = 1.5; }, {"data.max_bad_fraction"}},
      {[](Experiment& e) { e.mixture.prefix_tokens = e.data.seq_length + 1; },
       {"mixture.prefix_tokens", "data.seq_length"}},
      {[](Experiment& e) { e.mixture.prefix_tokens = 1; }, {"mixture.prefix_tokens"}},
      {[](Experiment& e) { e.mixture.experts = -1; }, {"mixture.experts"}},
      {[](Experiment& e) {
         e.mixture.experts = 0;
         e.baselines.dense = false;
       },
       {"mixture.experts", "baselines.dense", "lory.experts"}},
      {[](Experiment& e) {
         e.mixture.experts = 0;
         e.baselines.dense_large_batch = true;
       },
       {"baselines.dense_large_batch", "mixture.experts"}},
      {[](Experiment& e) { e.lory.experts = 1; }, {"lory.experts"}},
      {[](Experiment& e) { e.lory.experts = 5000; }, {"lory.experts"}},
      {[](Experiment& e) { e.lory.segment_tokens = 0; }, {"lory.segment_tokens"}},
      {[](Experiment& e) {
         e.lory.experts = 2;
         e.lory.segment_tokens = 129;
       },
       {"lory.segment_tokens", "data.seq_length"}},
      {[](Experiment& e) {
         e.lory.experts = 2;
         e.lory.layers = "0";
         e.lory.tensor_parallel = true;
       },
       {"lory.tensor_parallel", "lory.layers"}},
      {[](Experiment& e) {
         e.lory.experts = 2;
         e.lory.tensor_parallel = e.data.document_mask = true;
       },
       {"lory.tensor_parallel", "data.document_mask"}},
      {[](Experiment& e) { e.lory.dense_warmup = 1; }, {"lory.dense_warmup"}},
      {[](Experiment& e) { e.lory.dense_warmup = -0.1; }, {"lory.dense_warmup"}},
      {[](Experiment& e) { e.lory.train_steps = -1; }, {"lory.train_steps"}},
      {[](Experiment& e) { e.lory.train_steps = int64_t{1} << 62; },
       {"lory.train_steps", "expert.batch_size"}},
      {[](Experiment& e) {
         e.mixture.experts = 0;
         e.baselines.tfidf_shards = true;
       },
       {"baselines.tfidf_shards", "mixture.experts"}},
      {[](Experiment& e) {
         e.expert_train.min_lr = 1e-4;
         e.lory.lr = 1e-5;
       },
       {"lory.lr", "expert.min_lr"}},
      {[](Experiment& e) { e.mixture.experts = -1; }, {"mixture.experts"}},
      {[](Experiment& e) { e.mixture.experts = 65536; }, {"mixture.experts"}},
      {[](Experiment& e) { e.mixture.rounds = 0; }, {"mixture.rounds"}},
      {[](Experiment& e) {
         e.mixture.rounds = 1;
         e.mixture.sharding = Sharding::ngrams;
       },
       {"mixture.sharding", "mixture.rounds"}},
      {[](Experiment& e) { e.mixture.rounds = INT64_MAX; }, {"mixture.rounds"}},
      {[](Experiment& e) { e.mixture.sequences_per_round = 0; }, {"mixture.sequences_per_round"}},
      {[](Experiment& e) { e.mixture.group_size = -1; }, {"mixture.group_size"}},
      {[](Experiment& e) { e.mixture.group_size = 3; },
       {"mixture.group_size", "expert.batch_size"}},
      {[](Experiment& e) {
         e.mixture.group_size = 4;
         e.expert_train.micro_batch_size = 16;
       },
       {"expert.micro_batch_size", "expert.batch_size", "mixture.group_size"}},
      {[](Experiment& e) { e.router_train.batch_size = 1025; },
       {"router.batch_size", "mixture.sequences_per_round", "mixture.experts"}},
      {[](Experiment& e) { e.router_model.hidden_size = 0; }, {"router.hidden_size"}},
      {[](Experiment& e) { e.router_model.num_layers = 0; }, {"router.num_layers"}},
      {[](Experiment& e) { e.router_model.num_heads = 0; }, {"router.num_heads"}},
      {[](Experiment& e) { e.router_model.num_heads = 3; },
       {"router.num_heads", "router.hidden_size"}},
      {[](Experiment& e) {
         e.expert_model.hidden_size = 12;
         e.expert_model.num_heads = 4;
       },
       {"expert.hidden_size", "expert.num_heads", "even"}},
      {[](Experiment& e) { e.expert_model.num_kv_heads = 3; },
       {"expert.num_kv_heads", "expert.num_heads"}},
      {[](Experiment& e) { e.expert_model.num_kv_heads = 8; },
       {"expert.num_kv_heads", "expert.num_heads"}},
      {[](Experiment& e) { e.expert_model.num_kv_heads = -1; }, {"expert.num_kv_heads"}},
      {[](Experiment& e) { e.expert_model.intermediate_size = -1; }, {"expert.intermediate_size"}},
      {[](Experiment& e) { e.expert_model.rope_theta = 0; }, {"expert.rope_theta"}},
      {[](Experiment& e) { e.expert_model.rms_norm_eps = 0; }, {"expert.rms_norm_eps"}},
      {[](Experiment& e) { e.expert_model.init_std = -1; }, {"expert.init_std"}},
      {[](Experiment& e) { e.expert_model.embedding_std = -1; }, {"expert.embedding_std"}},
      {[](Experiment& e) { e.expert_train.steps = 0; }, {"expert.train_steps"}},
      {[](Experiment& e) { e.expert_train.batch_size = 0; }, {"expert.batch_size"}},
      {[](Experiment& e) { e.expert_train.micro_batch_size = 5; },
       {"expert.micro_batch_size", "expert.batch_size"}},
      {[](Experiment& e) { e.expert_train.micro_batch_size = 64; },
       {"expert.micro_batch_size", "expert.batch_size"}},
      {[](Experiment& e) { e.expert_train.micro_batch_size = -1; }, {"expert.micro_batch_size"}},
      {[](Experiment& e) { e.expert_train.lr = 0; }, {"expert.lr"}},
      {[](Experiment& e) { e.expert_train.min_lr = -1; }, {"expert.min_lr"}},
      {[](Experiment& e) { e.expert_train.min_lr = 1; }, {"expert.min_lr", "expert.lr"}},
      {[](Experiment& e) { e.expert_train.decay_steps = 5; },
       {"expert.decay_steps", "expert.lr_decay"}},
      {[](Experiment& e) { e.expert_train.lr_decay = Decay::wsd; }, {"expert.decay_steps"}},
      {[](Experiment& e) {
         e.expert_train.lr_decay = Decay::wsd_sqrt;
         e.expert_train.decay_steps = e.expert_train.steps;
         e.expert_train.warmup_steps = 1;
       },
       {"expert.decay_steps", "expert.train_steps"}},
      {[](Experiment& e) { e.router_train.warmup_steps = 1'000'000; },
       {"router.warmup_steps", "mixture.rounds"}},
      {[](Experiment& e) { e.expert_train.warmup_steps = -1; }, {"expert.warmup_steps"}},
      {[](Experiment& e) { e.expert_train.warmup_steps = 101; },
       {"expert.warmup_steps", "expert.train_steps"}},
      {[](Experiment& e) { e.expert_train.weight_decay = -1; }, {"expert.weight_decay"}},
      {[](Experiment& e) { e.expert_train.adam_beta1 = 1; }, {"expert.adam_beta1"}},
      {[](Experiment& e) { e.expert_train.adam_beta2 = -0.1; }, {"expert.adam_beta2"}},
      {[](Experiment& e) { e.expert_train.adam_eps = 0; }, {"expert.adam_eps"}},
      {[](Experiment& e) { e.expert_train.grad_clip = -1; }, {"expert.grad_clip"}},
      {[](Experiment& e) { e.expert_train.log_interval = 0; }, {"expert.log_interval"}},
      {[](Experiment& e) { e.router_train.save_interval = 0; }, {"router.save_interval"}},
      {[](Experiment& e) { e.router_train.keep_last = 0; }, {"router.keep_last"}},
      {[](Experiment& e) { e.expert_train.keep_every = -1; }, {"expert.keep_every"}},
      {[](Experiment& e) { e.baselines.dense_lr = -1; }, {"baselines.dense_lr"}},
      {[](Experiment& e) {
         e.expert_train.min_lr = 1e-4;
         e.baselines.dense_large_batch_lr = 1e-5;
       },
       {"baselines.dense_large_batch_lr", "expert.min_lr"}},
      {[](Experiment& e) { e.device.device = "tpu"; }, {"device.device", "tpu"}},
      {[](Experiment& e) { e.device.precision = "fp8"; }, {"device.precision", "fp8"}},
      {[](Experiment& e) { e.device.precision = "bf16-mixed"; },
       {"device.precision", "device.device"}},
      {[](Experiment& e) { e.device.threads = 0; }, {"device.threads"}},
      {[](Experiment& e) { e.device.flops_per_second = -1; }, {"device.flops_per_second"}},
      {[](Experiment& e) { e.device.trace_steps = "10"; }, {"device.trace_steps", "'10'"}},
      {[](Experiment& e) { e.device.trace_steps = "10:x"; }, {"device.trace_steps"}},
      {[](Experiment& e) { e.device.trace_steps = "10:20 "; }, {"device.trace_steps"}},
      {[](Experiment& e) { e.device.trace_steps = "20:20"; }, {"device.trace_steps"}},
      {[](Experiment& e) { e.device.trace_steps = "-1:20"; }, {"device.trace_steps"}},
      {[](Experiment& e) { e.expert_train.outlier_zscore = -1; }, {"expert.outlier_zscore"}},
  };
  for (const Refusal& refusal : refusals) {
    Experiment e;
    refusal.change(e);
    try {
      e.validate();
      ADD_FAILURE() << "accepted an impossible " << refusal.keys.front();
    } catch (const Error& error) {
      for (const std::string& key : refusal.keys) {
        EXPECT_NE(std::string(error.what()).find(key), std::string::npos)
            << key << " is missing in: " << error.what();
      }
    }
  }
}

TEST(ExperimentValidate, LayersAreNumbersAndRangesOfThem) {
  Experiment e;
  e.lory.experts = 2;
  e.expert_model.num_layers = 4;
  const auto layers = [&](const std::string& list) {
    e.lory.layers = list;
    e.validate();
    return e.lory_model().merging_layers();
  };
  EXPECT_EQ(layers(""), (std::vector<bool>{true, true, true, true}));
  EXPECT_EQ(layers("1-2"), (std::vector<bool>{false, true, true, false}));
  EXPECT_EQ(layers("3,0,0-0"), (std::vector<bool>{true, false, false, true}));
  for (const char* wrong :
       {"4", "2-1", "0;1", "0,", ",", "-1", "1-", "a", " 1", "99999999999999999999"}) {
    try {
      layers(wrong);
      ADD_FAILURE() << "accepted " << wrong;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("lory.layers"), std::string::npos);
      EXPECT_NE(std::string(error.what()).find("from 0 to 3"), std::string::npos);
    }
  }
}

TEST(ExperimentValidate, AcceptsTheEdges) {
  Experiment e;
  e.mixture.prefix_tokens = e.data.seq_length;
  e.mixture.experts = 1;
  e.mixture.rounds = 1;
  e.router_train.batch_size = 4096;
  e.expert_train.warmup_steps = 100;
  e.expert_train.micro_batch_size = 8;
  e.mixture.group_size = 4;
  e.expert_model.num_kv_heads = 1;
  e.device.device = "cuda";
  e.device.precision = "bf16-mixed";
  e.device.trace_steps = "0:15";
  EXPECT_NO_THROW(e.validate());
  EXPECT_EQ(e.device.traced_steps().first, 0);
  EXPECT_EQ(e.device.traced_steps().last, 15);
  EXPECT_NO_THROW(Experiment{}.validate());
  Experiment alone;
  alone.mixture.experts = 0;
  alone.baselines.dense = false;
  alone.lory.experts = 2;
  alone.lory.segment_tokens = alone.data.seq_length;
  alone.lory.layers = "1,0-1";
  EXPECT_NO_THROW(alone.validate());
}

// Beside other keys some cannot act: what somebody set is refused then, a default never.
TEST_F(ExperimentFile, AKeyThatCannotActIsRefused) {
  const std::string no_dense = "[baselines]\ndense = false\n";
  struct Case {
    std::string idle, acting;
    std::vector<std::string> parts;
  };
  const Case cases[] = {
      {"[data]\ntokenizer = \"a.model\"\ntokenizer_sample_bytes = 5\n",
       "[data]\ntokenizer_sample_bytes = 5\n",
       {"data.tokenizer_sample_bytes = 5", "data.tokenizer"}},
      {"[expert]\nlr_decay = \"constant\"\nmin_lr = 1e-4\n",
       "[expert]\nlr_decay = \"linear\"\nmin_lr = 1e-4\n",
       {"expert.min_lr = 0.0001", "expert.lr_decay is constant"}},
      {"[router]\nlr_decay = \"constant\"\nmin_lr = 1e-4\n",
       "[router]\nmin_lr = 1e-4\n[expert]\nlr_decay = \"constant\"\n",
       {"router.min_lr", "router.lr_decay"}},
      {"[expert]\noutlier_skip = true\noutlier_zscore = 0\n",
       "[expert]\noutlier_skip = true\n[router]\noutlier_zscore = 0\n",
       {"expert.outlier_skip = true", "expert.outlier_zscore = 0"}},
      {no_dense + "[device]\ntrace_steps = \"128:130\"\n",  // routers make 8 x 16 steps
       no_dense + "[device]\ntrace_steps = \"127:130\"\n",
       {"device.trace_steps", "no model"}},
      {no_dense + "[device]\ntrace_steps = \"200:201\"\n",
       "[device]\ntrace_steps = \"200:201\"\n",  // a dense model has more
       {"device.trace_steps"}},
  };
  const std::string router = "[mixture]\nrounds = 8\nsequences_per_round = 2048\n";
  for (const auto& [idle, acting, parts] : cases) {
    const bool traced = idle.find("trace") != std::string::npos;
    refuses((traced ? router : "") + idle, parts);
    EXPECT_NO_THROW(load((traced ? router : "") + acting)) << acting;
  }
  // Written out, a default is no wish.
  EXPECT_NO_THROW(load("[expert]\nlr_decay = \"constant\"\nmin_lr = 0\n"));
  EXPECT_NO_THROW(load(to_toml(load("[expert]\nlr_decay = \"constant\"\n"))));
}

}  // namespace
}  // namespace smalltalk
