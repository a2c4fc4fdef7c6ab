// config.json: what is taken, and what is refused by its name.
#include "lm/model/model_config_file.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "lm/model/parameter_layout.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

using nlohmann::json;

class ModelConfigFile : public testing::Test {
 protected:
  ModelConfigFile() {
    ModelConfig config;
    config.vocab_size = 37;
    whole_ = json::parse(model_config_text(config.resolved(), {}));
    whole_.erase("head_dim");  // optional; it would be the first to disagree
  }
  std::string complaint(const std::string& text) const {
    write_text_atomically(folder_ / "config.json", text);
    return complaint_of(
        [&] { parameter_layout(read_model_config(folder_ / "config.json").resolved()); });
  }
  void refuses(const std::string& key, const json& value, const std::string& named) const {
    json changed = whole_;
    changed[key] = value;
    EXPECT_NE(complaint(changed.dump()).find(named), std::string::npos)
        << key << " = " << value << ": " << complaint(changed.dump());
  }

  TemporaryFolder folder_;
  json whole_;
};

TEST_F(ModelConfigFile, EveryKeyOfTheWrongTypeIsNamed) {
  ASSERT_EQ(complaint(whole_.dump()), "");
  for (const char* key : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                          "num_attention_heads", "num_key_value_heads"}) {
    for (const json& value :
         {json("4"), json(64.5), json(true), json::array({4}), json(UINT64_MAX)}) {
      refuses(key, value, std::string("'") + key + "'");
    }
    refuses(key, -4, "model: ");
    refuses(key, int64_t{1} << 62, "model: ");
  }
  for (const char* key : {"rms_norm_eps", "initializer_range"}) refuses(key, "x", key);
  refuses("model_type", 3, "'model_type'");
  refuses("tie_word_embeddings", 1, "'tie_word_embeddings'");
  refuses("rope_scaling", {{"rope_type", 3}}, "'rope_type'");
  refuses("rope_scaling", {{"type", json::array()}}, "'type'");
  refuses("rope_parameters", {{"rope_theta", "x"}}, "'rope_theta'");
  refuses("rope_scaling", {{"rope_type", "yarn\x1b[31m"}}, "yarn\\x1b[31m");
  refuses("head_dim", int64_t{1} << 62, "head_dim");
}

TEST_F(ModelConfigFile, RefusesWhatIsNoObject) {
  for (const std::string& text : {std::string(), std::string("[1]"), std::string("3"),
                                  std::string("{\"a\""), std::string(1 << 20, '[')}) {
    EXPECT_NE(complaint(text).find("config.json"), std::string::npos) << text.substr(0, 9);
    EXPECT_LT(complaint(text).size(), 1000u);
  }
}

TEST_F(ModelConfigFile, CutAnywhereItIsRefused) {
  const std::string text = whole_.dump(2);
  for (size_t size = 0; size < text.size(); ++size) {
    EXPECT_NE(complaint(text.substr(0, size)).find("config.json"), std::string::npos) << size;
  }
}

}  // namespace
}  // namespace smalltalk
