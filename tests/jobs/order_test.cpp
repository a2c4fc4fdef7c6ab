// Runs whose training documents lie in an order by likeness.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "job_runner.hpp"
#include "smalltalk/data/order_file.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "support/complaint.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class OrderJob : public JobTest {
 protected:
  // A small run in an order.
  std::string job(const std::string& name, const std::string& out = "run",
                  const std::string& more = "") const {
    return name + " " + experiment().string() + " --out " + (folder_ / out).string() +
           " --set data.order=similar --set mixture.experts=2 --set mixture.rounds=2"
           " --set mixture.sequences_per_round=64 --set expert.train_steps=8"
           " --set baselines.dense_large_batch=false " +
           more;
  }
  void make(const std::string& command, int ranks = 1) const {
    const Outcome outcome = ranks == 1 ? run_alone(command) : run_job(ranks, command);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
  }
  // The job fails and says so once.
  void expect_refused(const std::string& command, const std::string& why, int ranks = 1) const {
    const Outcome outcome = ranks == 1 ? run_alone(command) : run_job(ranks, command);
    EXPECT_NE(outcome.exit_code, 0) << command;
    EXPECT_EQ(count_of(outcome.output, why), 1) << outcome.output;
  }
  fs::path order(const std::string& out = "run") const { return folder_ / out / "order.h5"; }

  // The share of documents whose domain is that of the one before.
  double alike(const std::vector<uint64_t>& documents) const {
    const auto domains = read_domains(folder_ / "run/tokens/train.h5").of_document;
    int64_t same = 0;
    for (size_t i = 1; i < documents.size(); ++i) {
      same += domains[documents[i]] == domains[documents[i - 1]] ? 1 : 0;
    }
    return static_cast<double>(same) / static_cast<double>(documents.size() - 1);
  }

  // As another program would write it.
  fs::path write_vectors(int64_t documents) const {
    const fs::path path = folder_ / "vectors.txt";
    std::ofstream out(path);
    for (int64_t i = 0; i < documents; ++i) out << 1 + i % 3 << " " << 1 + i % 5 << "\n";
    out.close();
    const fs::path file = folder_ / "vectors.h5";
    fs::remove(file);
    const std::string dims = std::to_string(documents) + " 2";
    std::ofstream(folder_ / "vectors.conf")
        << "PATH vectors\nINPUT-CLASS TEXTFP\nRANK 2\nDIMENSION-SIZES " << dims
        << "\nOUTPUT-CLASS FP\nOUTPUT-SIZE 32\n";
    const Outcome outcome =
        run_command("h5import " + path.string() + " -c " + (folder_ / "vectors.conf").string() +
                    " -o " + file.string());
    EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
    return file;
  }
};

TEST_F(OrderJob, DocumentsThatAreAlikeLieTogetherForAnyNumberOfRanks) {
  make(job("prepare"));
  make(job("order"));
  const std::string bytes = read_text(order());
  const DocumentOrder made = read_order(order());
  ASSERT_EQ(made.documents.size(), 1500U);
  EXPECT_GT(alike(made.documents), 0.9);
  std::vector<uint64_t> in_the_file(made.documents.size());
  for (size_t i = 0; i < in_the_file.size(); ++i) in_the_file[i] = i;
  EXPECT_LT(alike(in_the_file), 0.35);  // four languages at random

  make(job("order"));  // does nothing
  EXPECT_EQ(read_text(order()), bytes);
  for (const int ranks : {2, 4}) {
    fs::remove(order());
    make(job("order", "run", "--set device.threads=2"), ranks);
    EXPECT_TRUE(read_text(order()) == bytes) << ranks << " ranks";
  }
  const auto told = nlohmann::json::parse(run_alone("inspect --json " + order().string()).output);
  EXPECT_EQ(told.at("kind"), "order");
  EXPECT_EQ(told.at("num_documents"), 1500);
}

TEST_F(OrderJob, LaunchMakesItAndTrainsOnIt) {
  EXPECT_NE(run_alone(job("launch", "run", "--dry-run")).output.find("by likeness"),
            std::string::npos);
  make(job("launch"), 2);
  const auto status =
      nlohmann::json::parse(run_alone("status --json " + (folder_ / "run").string()).output);
  EXPECT_EQ(status.at("stages")[1].at("stage"), "order");
  EXPECT_EQ(status.at("stages")[1].at("done"), 1);
  EXPECT_GT(results("run").at("models").at("mixture").at("perplexity").at("all"), 1.0);
  EXPECT_TRUE(results("run").at("seconds").contains("order"));

  // The stages one by one give the same bytes; in the order of the file, others do.
  for (const char* stage : {"prepare", "order", "route", "shard", "train --model experts/1"}) {
    make(job(stage, "stages"));
  }
  const auto model = [&](const std::string& out) {
    return read_text(folder_ / out / "experts/1/model.safetensors");
  };
  EXPECT_TRUE(model("run") == model("stages"));
  make(job("launch", "file", "--set data.order=file"));
  EXPECT_FALSE(fs::exists(order("file")));
  EXPECT_FALSE(model("run") == model("file"));
  EXPECT_TRUE(read_text(folder_ / "run/tokens/train.h5") ==
              read_text(folder_ / "file/tokens/train.h5"));
  const auto why = run_alone("explain " + (folder_ / "run").string() + " --sequence 3 --json");
  EXPECT_EQ(why.exit_code, 0) << why.output;
}

TEST_F(OrderJob, AnotherOrderIsNotMixedIn) {
  expect_refused(job("order"), "tokenizer.model", 2);
  make(job("prepare"));
  expect_refused(job("route"), "run order first", 2);
  expect_refused(job("order", "run", "--set data.order=file"), "set it to similar");
  expect_refused(job("order", "run", "--set data.packing=documents"), "needs data.packing");
  make(job("order"));
  make(job("route"));
  expect_refused(job("order", "run", "--neighbours 5"), "was made by TF-IDF", 2);
  expect_refused(job("shard", "run", "--set data.order=file"), "data.order");

  const std::string bytes = read_text(order());
  fs::remove(order());
  make(job("order", "run", "--neighbours 5"));
  EXPECT_FALSE(read_text(order()) == bytes);
  expect_refused(job("shard"), "its order is", 2);
  write_text_atomically(order(), bytes);
  make(job("shard"));
  fs::remove(order());
  make(job("order", "run", "--neighbours 5"));
  expect_refused(job("train --model experts/0"), "from other tokens");

  std::string damaged = bytes;
  damaged[damaged.find("\x01\0\0\0\0\0\0\0", 0, 8) + 1] ^= 4;
  for (const std::string& other : {damaged, bytes.substr(0, bytes.size() / 2)}) {
    write_text_atomically(order(), other);
    expect_refused(job("shard"), "order.h5", 2);
    expect_refused(job("launch"), "order.h5", 2);
  }
}

TEST_F(OrderJob, VectorsOfAnotherProgramAreTaken) {
  make(job("prepare"));
  expect_refused(job("order", "run", "--vectors " + write_vectors(1499).string()),
                 "1499 vectors, for 1500 training documents", 2);
  expect_refused(job("order", "run", "--vectors nowhere.h5"), "nowhere.h5", 2);
  const std::string vectors = " --vectors " + write_vectors(1500).string();
  make(job("order", "run", vectors));
  const std::string bytes = read_text(order());
  // (1, 1), then (2, 2), which has the same direction.
  EXPECT_EQ(read_order(order()).documents[1], 1U);
  fs::remove(order());
  make(job("order", "run", vectors), 4);
  EXPECT_TRUE(read_text(order()) == bytes);
  make(job("route"));  // goes on with it
  EXPECT_EQ(run_alone(job("order", "run", vectors + " --dimensions 3")).exit_code, 2);
}

TEST_F(OrderJob, HiddenStatesOfATrainedModelAreTaken) {
  for (const char* stage : {"prepare", "route"}) {
    make(job(stage, "other", "--set data.order=file"));
  }
  const std::string router = (folder_ / "other/routers/0").string();
  const std::string by_router = " --model " + router;
  make(job("prepare"));
  make(job("order", "run", by_router));
  const std::string bytes = read_text(order());
  const DocumentOrder made = read_order(order());
  EXPECT_GT(alike(made.documents), 0.9);
  const auto weights =
      nlohmann::json::parse(run_alone("inspect --json " + router + "/model.safetensors").output);
  EXPECT_EQ(value_of(made.provenance, "made_by"),
            "mean hidden states of model " + weights.at("metadata").at("xxh3").get<std::string>() +
                ", 20 neighbours");
  for (const int ranks : {2, 4}) {
    fs::remove(order());
    make(job("order", "run", by_router + " --set device.threads=2"), ranks);
    EXPECT_TRUE(read_text(order()) == bytes) << ranks << " ranks";
  }
  make(job("order", "run", by_router));  // does nothing
  make(job("route"));                    // goes on with it

  expect_refused(job("order"), "was made by mean hidden states", 2);
  expect_refused(job("order", "run", " --model " + (folder_ / "other/routers/1").string()),
                 "was made by mean hidden states", 2);
  for (const std::string option : {"--dimensions 3", "--vectors v.h5"}) {
    EXPECT_EQ(run_alone(job("order", "run", by_router + " " + option)).exit_code, 2);
  }
}

TEST_F(OrderJob, ModelsThatCannotReadTheTextAreRefused) {
  for (const char* stage : {"prepare", "route"}) {
    make(job(stage, "other", "--set data.order=file --set data.vocab_size=310"));
  }
  make(job("prepare"));
  const std::string router = (folder_ / "other/routers/0").string();
  for (const int ranks : {1, 2}) {
    expect_refused(job("order", "run", "--model " + router), "reads 310 tokens of tokenizer",
                   ranks);
    expect_refused(job("order", "run", "--model nowhere"), "nowhere", ranks);
    expect_refused(job("order", "run", "--model " + folder_.path().string()), "model.safetensors",
                   ranks);
  }
  std::string damaged = read_text(router + "/model.safetensors");
  damaged[damaged.size() - 1] ^= 1;
  write_text_atomically(router + "/model.safetensors", damaged);
  expect_refused(job("order", "run", "--model " + router), "model.safetensors", 2);
  EXPECT_FALSE(fs::exists(order()));
}

TEST_F(OrderJob, TheBlasOfLibTorchIsTheOneThatIsCalled) {
  const Outcome outcome =
      run_command("LD_BIND_NOW=1 LD_DEBUG=bindings " + from_environment("SMALLTALK_BINARY") +
                  " --version 2>&1 | grep -E 'symbol .sgemm_'");
  EXPECT_GT(count_of(outcome.output, "sgemm_"), 0);
  EXPECT_EQ(count_of(outcome.output, "sgemm_"),
            count_of(outcome.output, "libtorch_cpu.so [0]: normal symbol"))
      << outcome.output;
}

}  // namespace
}  // namespace smalltalk
