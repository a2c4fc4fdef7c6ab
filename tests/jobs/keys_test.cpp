// Every key of the experiment acts: another value of it changes something that can be seen, in the
// tokens, the routers, an expert, the plan, or what is written beside them.
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <set>
#include <sstream>

#include "job_runner.hpp"
#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

// Where it is seen.
enum class Seen {
  tokens,        // the tokens and how they are labelled
  routers,       // weights of a router
  expert,        // weights of an expert
  dense,         // weights of the dense model
  large_batch,   // weights of the one with a large batch
  lory,          // weights of the Lory model
  router_files,  // files and rows that a router leaves
  expert_files,  // the same of an expert
  plan,          // what --dry-run prints
  title,         // of the report
};

struct Case {
  std::string value;  // another one
  Seen seen;
  std::string beside = "";  // overrides of both, without which it has no effect
};

// Of routers and experts alike.
std::map<std::string, Case> model_cases(const std::string& section, Seen weights, Seen files) {
  const std::string train = "--set " + section + ".";
  std::map<std::string, Case> cases = {
      {"hidden_size", {"24", weights}},
      {"num_layers", {"2", weights}},
      {"num_heads", {"4", weights}},
      {"num_kv_heads", {"1", weights}},
      {"intermediate_size", {"40", weights}},
      {"feed_forward", {"relu2", weights}},
      {"tie_embeddings", {"false", weights}},
      {"rope_theta", {"500", weights}},
      {"rms_norm_eps", {"1e-2", weights}},
      {"init_std", {"0.1", weights}},
      {"embedding_std", {"0.1", weights}},
      {"batch_size", {"4", weights}},
      {"micro_batch_size", {"2", weights}},  // other sums
      {"lr", {"1e-3", weights}},
      {"min_lr", {"1e-3", weights, train + "lr_decay=cosine"}},
      {"warmup_steps", {"4", weights}},
      {"lr_decay", {"linear", weights}},
      {"decay_steps", {"3", weights, train + "lr_decay=wsd " + train + "decay_steps=2"}},
      {"weight_decay", {"0.5", weights}},
      {"adam_beta1", {"0.5", weights}},
      {"adam_beta2", {"0.5", weights}},
      {"adam_eps", {"1e-2", weights}},
      {"grad_clip", {"1e-3", weights}},
      {"log_interval", {"2", files}},
      {"keep_every", {"3", files}},
      {"keep_last", {"9", Seen::plan}},
      {"tensorboard", {"true", files}},
      {"skip_nonfinite", {"true", files, train + "lr=1e30 " + train + "grad_clip=0"}},
  };
  std::map<std::string, Case> result;
  for (auto& [name, one] : cases) result[section + "." + name] = one;
  return result;
}

class Keys : public JobTest {
 protected:
  void SetUp() override {
    JobTest::SetUp();
    std::ofstream lines(folder_ / "lines.txt");
    for (int i = 0; i < 2000; ++i) lines << "abc def ghij " << i << " klm nopq\n";
    const std::string text = read_text(folder_ / "heldout.jsonl");
    std::ofstream(folder_ / "other.jsonl") << text << "{\"text\": \"one more document\"}\n";
    std::ofstream(folder_ / "bad.jsonl") << text << "{\"text\"\n";
    std::ofstream fields(folder_ / "fields.jsonl");
    std::istringstream rows(text);
    for (std::string line; std::getline(rows, line);) {
      auto row = nlohmann::json::parse(line);
      const std::string words = row.at("text");
      row["body"] = words.substr(words.size() / 2);
      row["label"] = "b" + std::to_string(words.size() % 3);
      fields << row.dump() << "\n";
    }
  }

  // A small run, and what makes it smaller still.
  std::string job(const std::string& name, const std::string& out, const std::string& more) const {
    return name + " " + experiment().string() + " --out " + (folder_ / out).string() +
           " --set mixture.experts=2 --set mixture.rounds=2 --set mixture.sequences_per_round=64"
           " --set router.num_heads=2 --set expert.train_steps=8 --set expert.log_interval=4"
           " --set baselines.dense_large_batch=false --set baselines.random_shards=false " +
           more;
  }

  // The numbers of a model, without what it says it was made from.
  static std::string weights(const fs::path& model) {
    const std::string bytes = read_text(model / "model.safetensors");
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof header);
    return bytes.substr(sizeof header + header);
  }

  // Names of a model's files, steps of its rows.
  static std::string files_of(const fs::path& model) {
    std::set<std::string> names;
    for (const auto& entry : fs::recursive_directory_iterator(model)) {
      std::string name = fs::relative(entry.path(), model).string();
      if (name.starts_with("tensorboard")) name = "tensorboard";  // times are in its files' names
      names.insert(name);
    }
    std::string text;
    for (const std::string& name : names) text += name + "\n";
    std::istringstream rows(read_text(model / "metrics.jsonl"));
    for (std::string line; std::getline(rows, line);) {
      text += nlohmann::json::parse(line).at("step").dump() + "\n";
    }
    return text;
  }

  // A run with the first stages of another.
  void copy_run(const std::string& from, const std::string& to,
                const std::vector<std::string>& without) const {
    fs::remove_all(folder_ / to);
    fs::copy(folder_ / from, folder_ / to, fs::copy_options::recursive);
    for (const std::string& part : without) fs::remove_all(folder_ / to / part);
  }

  std::string make(const std::string& stage, const std::string& settings) {
    const Outcome outcome = run_alone(job(stage, "run", settings));
    return outcome.exit_code == 0 ? "" : "failed: " + outcome.output;
  }

  // What is seen with these settings; what fails is seen as well.
  std::string see(Seen where, const std::string& settings) {
    static const std::vector<std::string> kFromRouting = {
        "routers", "rounds",    "scores",     "shards",        "shards.h5",      "random_shards.h5",
        "experts", "baselines", "evaluation", "routing.jsonl", "experiment.toml"};
    if (where == Seen::plan) return run_alone(job("launch", "new", "--dry-run " + settings)).output;
    if (where == Seen::title) {
      copy_run("base", "run", {});
      const std::string failed = make("launch", settings);
      const std::string page = read_text(folder_ / "run/report.html");
      const size_t title = page.find("<title>");
      return failed + page.substr(title, page.find("</title>") - title);
    }
    if (where == Seen::tokens) {
      fs::remove_all(folder_ / "run");
      const std::string failed = make("prepare", settings);
      return failed.empty() ? tokens_of("train") + tokens_of("validation") + tokens_of("test")
                            : "failed";
    }
    if (where == Seen::routers || where == Seen::router_files) {
      copy_run("base", "run", kFromRouting);
      if (settings.find("data.order=similar") != std::string::npos) {
        EXPECT_EQ(make("order", settings), "");
      }
      const std::string failed = make("route", settings);
      if (!failed.empty()) return "failed";
      const fs::path router = folder_ / "run/routers/0";
      return where == Seen::routers ? weights(router) : files_of(router);
    }
    copy_run("base", "run", {"experts", "baselines", "lory", "evaluation"});
    const std::string model = where == Seen::dense         ? "baselines/dense"
                              : where == Seen::large_batch ? "baselines/dense_large_batch"
                              : where == Seen::lory        ? "lory"
                                                           : "experts/0";
    if (!make("train --model " + model, settings).empty()) return "failed";
    return where == Seen::expert_files ? files_of(folder_ / "run" / model)
                                       : weights(folder_ / "run" / model);
  }

  // Of the last run, without what only names the settings.
  std::string tokens_of(const std::string& split) const {
    const std::string file = (folder_ / "run/tokens" / (split + ".h5")).string();
    auto told = nlohmann::json::parse(run_alone("inspect --json " + file).output);
    told["attributes"] = told.at("attributes").at("content_hash");
    return told.dump();
  }
};

TEST_F(Keys, EachActs) {
  const auto text = [&](const std::string& file) {
    return "'[\"" + (folder_ / file).string() + "\"]'";
  };
  const auto all = [&](const std::string& file) {
    std::string settings;
    for (const char* split : {"train", "validation", "test"}) {
      settings += std::string("--set data.") + split + "=" + text(file) + " ";
    }
    return settings;
  };
  const std::string lory =
      "--set lory.experts=2 --set lory.segment_tokens=8 --set expert.num_layers=2";
  std::map<std::string, Case> cases = {
      {"name", {"another", Seen::title}},
      {"seed", {"7", Seen::routers}},
      {"data.train", {text("other.jsonl"), Seen::tokens}},
      {"data.validation", {text("other.jsonl"), Seen::tokens}},
      {"data.test", {text("other.jsonl"), Seen::tokens}},
      {"data.text_key", {"body", Seen::tokens, all("fields.jsonl")}},
      {"data.domain_key", {"label", Seen::tokens, all("fields.jsonl")}},
      {"data.lines", {"true", Seen::tokens, all("lines.txt")}},
      {"data.tokenizer", {(folder_ / "t.model").string(), Seen::tokens}},
      {"data.vocab_size", {"290", Seen::tokens}},
      {"data.tokenizer_sample_bytes", {"5000", Seen::tokens}},
      {"data.max_bad_fraction", {"0.5", Seen::tokens, all("bad.jsonl")}},
      {"data.seq_length", {"16", Seen::routers}},
      {"data.packing", {"documents", Seen::tokens}},
      {"data.order", {"similar", Seen::routers}},
      {"data.document_mask", {"true", Seen::routers, "--set mixture.prefix_tokens=32"}},
      {"mixture.experts", {"3", Seen::routers}},
      {"mixture.prefix_tokens", {"16", Seen::routers}},
      {"mixture.rounds", {"3", Seen::routers}},
      {"mixture.sequences_per_round", {"96", Seen::routers}},
      {"mixture.assignment", {"margin", Seen::routers}},
      {"mixture.sharding", {"ngrams", Seen::plan}},
      {"mixture.group_size", {"2", Seen::plan, "--world 8 --set expert.batch_size=8"}},
      {"expert.train_steps", {"9", Seen::expert}},
      {"baselines.dense", {"false", Seen::plan}},
      {"baselines.dense_large_batch", {"true", Seen::plan}},
      {"baselines.random_shards", {"true", Seen::plan}},
      {"baselines.tfidf_shards", {"true", Seen::plan}},
      {"baselines.dense_lr", {"1e-3", Seen::dense}},
      {"baselines.dense_large_batch_lr",
       {"1e-3", Seen::large_batch, "--set baselines.dense_large_batch=true"}},
      {"baselines.dense_warmup_steps", {"3", Seen::dense}},
      {"baselines.dense_large_batch_warmup_steps",
       {"3", Seen::large_batch, "--set baselines.dense_large_batch=true"}},
      {"lory.experts", {"3", Seen::lory, lory}},
      {"lory.segment_tokens", {"9", Seen::lory, lory}},
      {"lory.layers", {"1", Seen::lory, lory}},
      {"lory.routing", {"prefix", Seen::lory, lory}},
      {"lory.first_segment", {"uniform", Seen::lory, lory}},
      {"lory.dense_warmup", {"0.5", Seen::lory, lory}},
      {"lory.train_steps", {"7", Seen::lory, lory}},
      {"lory.lr", {"1e-3", Seen::lory, lory}},
      {"lory.tensor_parallel",
       {"true", Seen::plan, "--world 2 --set mixture.group_size=2 " + lory}},
      {"device.device", {"cuda", Seen::plan, "--world 2"}},
      {"device.precision", {"bf16-mixed", Seen::plan, "--world 2 --set device.device=cuda"}},
      {"device.threads", {"2", Seen::plan}},
      {"device.flops_per_second", {"1e9", Seen::plan}},
      {"device.trace_steps", {"1:2", Seen::expert_files}},
  };
  cases.merge(model_cases("router", Seen::routers, Seen::router_files));
  cases.merge(model_cases("expert", Seen::expert, Seen::expert_files));
  // A router that has diverged ends the next round.
  cases["router.skip_nonfinite"].beside += " --set mixture.rounds=1";
  cases["expert.recompute"] = {"full", Seen::plan, "--set expert.num_layers=3"};
  // The same bits from less memory, of which the plan tells the expert's: see lm/memory. Which
  // checkpoints there are until a model is finished: see lm/TrainerTest.
  const std::set<std::string> seen_elsewhere = {"router.recompute", "router.save_interval",
                                                "expert.save_interval"};
  // There must be steps to stand out from, and that on a level.
  const std::string many =
      "--set router.log_interval=500 --set mixture.sequences_per_round=640 "
      "--set mixture.rounds=10 ";
  cases["router.outlier_zscore"] = {"0.5", Seen::router_files, many};
  cases["router.outlier_skip"] = {"true", Seen::routers, many + "--set router.outlier_zscore=0.5"};
  const std::string longer = "--set expert.log_interval=500 --set expert.train_steps=400 ";
  cases["expert.outlier_zscore"] = {"0.5", Seen::expert_files, longer};
  cases["expert.outlier_skip"] = {"true", Seen::expert, longer + "--set expert.outlier_zscore=0.5"};

  ASSERT_EQ(run_alone(job("launch", "base", "")).exit_code, 0);
  ASSERT_EQ(run_alone("prepare --input " + (folder_ / "heldout.jsonl").string() + " --tokenizer " +
                      (folder_ / "t.model").string() + " --vocab-size 300 --out " +
                      (folder_ / "t.h5").string())
                .exit_code,
            0);
  Experiment experiment;
  std::map<std::string, std::string> seen_before;  // by where and beside what
  visit_fields(experiment, [&](const std::string& key, auto&, const char*) {
    if (seen_elsewhere.contains(key)) return;
    const auto found = cases.find(key);
    if (found == cases.end()) {
      ADD_FAILURE() << key << ": say in this test where another value is seen";
      return;
    }
    const auto& [value, where, beside] = found->second;
    const std::string what = std::to_string(static_cast<int>(where)) + beside;
    if (!seen_before.contains(what)) seen_before[what] = see(where, beside);
    const std::string now = see(where, beside + " --set " + key + "=" + value);
    EXPECT_TRUE(now != seen_before[what]) << key << " = " << value << " is seen nowhere";
    cases.erase(found);
  });
  for (const auto& [key, one] : cases) ADD_FAILURE() << key << " is no key";
}

}  // namespace
}  // namespace smalltalk
