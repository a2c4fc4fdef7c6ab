// Documents embedded by a trained model: against the logits of a model whose output projection
// hands hidden states through, a piece at a time.
#include "mixture/routing/document_embeddings.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "smalltalk/core/system/random.hpp"
#include "smalltalk/data/token_writer.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kVocab = 40, kHidden = 16, kLongest = 12;
constexpr uint16_t kEnd = 2;

class DocumentEmbeddings : public testing::Test {
 protected:
  // Of no token, of one, of up to a row and more, and of several rows; the longest one is as long
  // as a third of all.
  void SetUp() override {
    for (uint64_t d = 0; d < 60; ++d) lengths_.push_back(static_cast<int64_t>(d * 7 % 30));
    lengths_[20] = 400;
    std::vector<uint16_t> tokens;
    std::vector<uint64_t> ends;
    for (size_t d = 0; d < lengths_.size(); ++d) {
      for (int64_t t = 0; t < lengths_[d]; ++t) {
        const uint64_t draw = derive_seed(9, "token", d, static_cast<uint64_t>(t));
        tokens.push_back(static_cast<uint16_t>(3 + draw % (kVocab - 3)));
      }
      tokens.push_back(kEnd);
      ends.push_back(tokens.size());
    }
    TokenFileInfo info;
    info.num_tokens = std::ssize(tokens);
    info.num_documents = std::ssize(ends);
    info.vocab_size = kVocab;
    info.tokenizer_hash = "abc";
    TokenWriter writer(folder_ / "t.h5", folder_ / "t.h5", info, {"unknown"});
    writer.add_tokens(tokens);
    writer.add_documents(ends, std::vector<uint16_t>(ends.size()));
    writer.finish();
  }

  static ModelConfig config(int64_t experts = 0) {
    ModelConfig config;
    config.vocab_size = kVocab;
    config.hidden_size = kHidden;
    config.num_heads = 4;
    config.tie_embeddings = false;
    config.init_std = config.embedding_std = 0.2;
    config.merged_experts = experts;
    config.segment_tokens = experts > 0 ? 5 : 0;
    return config;
  }

  // Logit h of each token is number h of its hidden state, for h < H; weight 0 of the last norm is
  // `of_norm`.
  fs::path save(const ModelConfig& config, std::map<std::string, std::string> metadata,
                float of_norm = 1) const {
    const fs::path path = folder_ / "model";
    Transformer(config, DeviceConfig(), 3).save(path, metadata);
    SafetensorsFile file = read_safetensors(path / "model.safetensors");
    std::vector<float>& head = file.tensors.at("lm_head.weight").values;
    std::fill(head.begin(), head.end(), 0.0F);
    for (int64_t h = 0; h < kHidden; ++h) head[static_cast<size_t>(h * kHidden + h)] = 1;
    file.tensors.at("model.norm.weight").values[0] = of_norm;
    std::map<std::string, TensorView> views;
    for (const auto& [name, tensor] : file.tensors) views[name] = {tensor.shape, tensor.values};
    write_safetensors(path / "model.safetensors", views, metadata);
    return path;
  }
  fs::path save(const ModelConfig& config) const {
    return save(config, {{"tokenizer", "abc"}, {"smalltalk.seq_length", "12"}});
  }

  TokenFile tokens() const { return TokenFile(folder_ / "t.h5"); }
  Embeddings embed(const fs::path& model, const HostCollectives& ranks = {},
                   int64_t threads = 1) const {
    smalltalk::Run run;
    run.experiment.device.threads = threads;
    return embed_by_model(run, tokens(), ranks, model);
  }
  std::string complaint(const fs::path& model) const {
    return complaint_of([&] { embed(model); });
  }

  // Each document's mean, of length 1.
  std::vector<double> expected(const fs::path& folder) const {
    const Transformer model = Transformer::load(folder, DeviceConfig());
    const TokenFile file = tokens();
    std::vector<double> result;
    int64_t begin = 0;
    for (const int64_t length : lengths_) {
      std::vector<double> mean(kHidden);
      for (int64_t at = 0; at < length; at += kLongest) {
        std::vector<int64_t> piece(static_cast<size_t>(std::min(kLongest, length - at)));
        file.read(begin + at, piece);
        const std::vector<float> logits = model.logits(piece, 1, std::ssize(piece));
        for (int64_t i = 0; i < std::ssize(piece) * kHidden; ++i) {
          mean[static_cast<size_t>(i % kHidden)] +=
              logits[static_cast<size_t>(i / kHidden * kVocab + i % kHidden)] /
              static_cast<double>(length);
        }
      }
      double squares = 0;
      for (const double value : mean) squares += value * value;
      for (const double value : mean) {
        result.push_back(squares > 0 ? value / std::sqrt(squares) : 0);
      }
      begin += length + 1;
    }
    return result;
  }

  const TemporaryFolder folder_;
  std::vector<int64_t> lengths_;  // of the documents
};

TEST_F(DocumentEmbeddings, AreMeansOverAllTokensOfADocument) {
  for (const int64_t experts : {0, 3}) {
    SCOPED_TRACE(experts);
    const fs::path model = save(config(experts));
    const Embeddings found = embed(model);
    const std::vector<double> wanted = expected(model);
    EXPECT_EQ(found.dimensions, kHidden);
    ASSERT_EQ(found.values.size(), wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i) ASSERT_NEAR(found.values[i], wanted[i], 1e-5) << i;
  }
}

TEST_F(DocumentEmbeddings, NeitherRanksNorThreadsShow) {
  const fs::path model = save(config());
  const std::vector<float> alone = embed(model).values;
  EXPECT_EQ(embed(model, {}, 3).values, alone);
  for (const int size : {2, 3, 4, 80}) {  // the last: more than documents
    run_thread_ranks(size, [&](const HostCollectives& ranks) {
      EXPECT_EQ(embed(model, ranks).values, alone) << size << " ranks";
    });
  }
}

TEST_F(DocumentEmbeddings, RefusesModelsThatDoNotReadTheTokens) {
  ModelConfig larger = config();
  larger.vocab_size = kVocab + 1;
  const std::string sizes = complaint(save(larger));
  EXPECT_TRUE(mentions(sizes, "model.safetensors reads 41 tokens of tokenizer abc"));
  EXPECT_TRUE(mentions(sizes, "t.h5 holds 40 of abc"));
  const std::string names =
      complaint(save(config(), {{"tokenizer", "xyz"}, {"smalltalk.seq_length", "12"}}));
  EXPECT_TRUE(mentions(names, "40 tokens of tokenizer xyz"));
  EXPECT_TRUE(mentions(names, "40 of abc"));
  EXPECT_EQ(complaint(save(config(), {{"smalltalk.seq_length", "12"}})), "");  // names none
}

TEST_F(DocumentEmbeddings, RefusesWhatIsNoModelOfThisProgram) {
  EXPECT_TRUE(mentions(complaint(folder_ / "nowhere"), "nowhere"));
  for (const char* length : {"", "0", "-3", "long"}) {
    const fs::path model = save(config(), {{"tokenizer", "abc"}});
    SafetensorsFile file = read_safetensors(model / "model.safetensors");
    std::map<std::string, TensorView> views;
    for (const auto& [name, tensor] : file.tensors) views[name] = {tensor.shape, tensor.values};
    write_safetensors(model / "model.safetensors", views, {{"smalltalk.seq_length", length}});
    EXPECT_TRUE(mentions(complaint(model), "is of another program")) << length;
  }
}

TEST_F(DocumentEmbeddings, RefusesHiddenStatesThatAreNotFinite) {
  const fs::path model =
      save(config(), {{"tokenizer", "abc"}, {"smalltalk.seq_length", "12"}}, INFINITY);
  EXPECT_TRUE(mentions(complaint(model), "its hidden states of document 1 are not finite"));
}

}  // namespace
}  // namespace smalltalk
