#include "smalltalk/data/tokenizer.hpp"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <nlohmann/json.hpp>
#include <random>

#include "data/in_child_process.hpp"
#include "files.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {
namespace {

using namespace test;

std::string random_unicode(std::mt19937_64& random) {
  static const std::vector<std::string> often = {" ",  "  ", "\n",   "\t", "a",
                                                 "ka", "7",  "</s>", "é"};
  std::string text;
  for (uint64_t i = 0, size = random() % 60; i < size; ++i) {
    if (random() % 2 == 0) {
      text += often[random() % often.size()];
      continue;
    }
    uint32_t c = static_cast<uint32_t>(random() % (random() % 2 == 0 ? 0x3000 : 0x110000));
    // No surrogates; U+2581 is SentencePiece's own sign for a space and comes back as one.
    if ((c >= 0xD800 && c < 0xE000) || c == 0x2581) c = 0x263A;
    const auto put = [&](uint32_t byte) { text += static_cast<char>(byte); };
    if (c < 0x80) {
      put(c);
    } else if (c < 0x800) {
      put(0xC0 | (c >> 6)), put(0x80 | (c & 63));
    } else if (c < 0x10000) {
      put(0xE0 | (c >> 12)), put(0x80 | ((c >> 6) & 63)), put(0x80 | (c & 63));
    } else {
      put(0xF0 | (c >> 18)), put(0x80 | ((c >> 12) & 63)), put(0x80 | ((c >> 6) & 63));
      put(0x80 | (c & 63));
    }
  }
  return text;
}

class TokenizerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryFolder;
    write_bytes(*folder_ / "a.jsonl", json_lines(made_up_documents(1500)));
    train_tokenizer({(*folder_ / "a.jsonl").string()}, 400, 200'000, model());
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }
  static std::filesystem::path model() { return *folder_ / "tokenizer.model"; }
  static std::string inputs() { return (*folder_ / "a.jsonl").string(); }

  static TemporaryFolder* folder_;
};
TemporaryFolder* TokenizerTest::folder_ = nullptr;

TEST_F(TokenizerTest, FollowsTheRecipe) {
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(model().string()).ok());
  EXPECT_EQ(processor.GetPieceSize(), 400);
  EXPECT_EQ(processor.IdToPiece(0), "<unk>");
  EXPECT_EQ(processor.IdToPiece(1), "<s>");
  EXPECT_EQ(processor.IdToPiece(2), "</s>");
  EXPECT_EQ(processor.pad_id(), -1);
  EXPECT_EQ(processor.IdToPiece(3), "<0x00>");
  EXPECT_EQ(processor.IdToPiece(258), "<0xFF>");
  for (int id = 3; id <= 258; ++id) EXPECT_TRUE(processor.IsByte(id));
  EXPECT_FALSE(processor.IsByte(259));
  for (int id = 259; id < 400; ++id) {  // digits stand alone
    const std::string& piece = processor.IdToPiece(id);
    if (piece.find_first_of("0123456789") != std::string::npos) {
      EXPECT_LE(piece.size(), 4u) << piece;
    }
  }
}

TEST_F(TokenizerTest, DecodesWhatItEncoded) {
  const Tokenizer tokenizer(model());
  std::mt19937_64 random(7);
  for (int i = 0; i < 3000; ++i) {
    const std::string text = random_unicode(random);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
  const std::string nul("a\0b", 3);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(nul)), nul);
  EXPECT_TRUE(tokenizer.encode("").empty());
}

// The word cache is a shortcut; SentencePiece on the whole text is the truth.
TEST_F(TokenizerTest, GivesWhatSentencePieceGives) {
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(model().string()).ok());
  const Tokenizer tokenizer(model());
  std::mt19937_64 random(8);
  std::vector<std::string> texts = made_up_documents(500, 99);
  for (int i = 0; i < 3000; ++i) texts.push_back(random_unicode(random));
  texts.push_back("\xE2\x96\x81 \xE2\x96\x81  x \xE2\x96\x81");
  texts.push_back(std::string(300, 'k') + " " + std::string(100, ' '));
  for (const std::string& text : texts) {
    std::vector<int> expected;
    ASSERT_TRUE(processor.Encode(text, &expected).ok());
    EXPECT_EQ(tokenizer.encode(text), expected) << text;
  }
}

// Pieces of several spaces, as indented text makes them: U+2581 beside a space is one of those.
TEST_F(TokenizerTest, GivesWhatSentencePieceGivesOfIndentedText) {
  std::vector<std::string> documents = made_up_documents(500);
  for (std::string& document : documents) document = "    " + document + "  x   x    x";
  const auto file = write_bytes(*folder_ / "indented.jsonl", json_lines(documents));
  const auto indented = *folder_ / "indented.model";
  train_tokenizer({file.string()}, 400, 200'000, indented);
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load(indented.string()).ok());
  const Tokenizer tokenizer(indented);
  std::mt19937_64 random(9);
  for (int i = 0; i < 3000; ++i) {
    std::string text;
    for (uint64_t k = 0, size = random() % 12; k < size; ++k) {
      text += std::array{" ", "x", "\xE2\x96\x81"}[random() % 3];
    }
    std::vector<int> expected;
    ASSERT_TRUE(processor.Encode(text, &expected).ok());
    EXPECT_EQ(tokenizer.encode(text), expected) << '"' << text << '"';
  }
}

TEST_F(TokenizerTest, HasNoDummyPrefixAndNoSpecialTokensInText) {
  const Tokenizer tokenizer(model());
  EXPECT_NE(tokenizer.encode("ka"), tokenizer.encode(" ka"));
  for (const char* text : {"</s>", "<s>", "<unk>", "x</s>y", "<0x41>"}) {
    const auto ids = tokenizer.encode(text);
    for (int32_t id : ids) EXPECT_GT(id, kEndToken) << text;
    EXPECT_EQ(tokenizer.decode(ids), text);
  }
}

TEST_F(TokenizerTest, TrainingTwiceGivesTheSameBytes) {
  train_tokenizer({inputs()}, 400, 200'000, *folder_ / "again.model");
  EXPECT_EQ(read_text(*folder_ / "again.model"), read_text(model()));
  EXPECT_EQ(Tokenizer(model()).hash(), hash_file(model()));
}

TEST_F(TokenizerTest, TrainsOnASampleOfTheText) {
  train_tokenizer({inputs()}, 400, 30'000, *folder_ / "small.model");
  EXPECT_EQ(Tokenizer(*folder_ / "small.model").vocab_size(), 400);
  EXPECT_NE(read_text(*folder_ / "small.model"), read_text(model()));
}

TEST_F(TokenizerTest, TrainsOnDocumentsFromTheirFirstLetterToTheirLastLine) {
  std::vector<std::string> documents = made_up_documents(300);
  for (std::string& document : documents) document = "Q" + document + "\nW\n\nZ";
  const auto file = write_bytes(*folder_ / "lines.jsonl", json_lines(documents));
  train_tokenizer({file.string()}, 400, 1'000'000, *folder_ / "lines.model");
  sentencepiece::SentencePieceProcessor processor;
  ASSERT_TRUE(processor.Load((*folder_ / "lines.model").string()).ok());
  for (const char* letter : {"Q", "W", "Z"}) EXPECT_GE(processor.PieceToId(letter), 259) << letter;
}

TEST_F(TokenizerTest, SaysWhichTokensEndAText) {
  const auto config = nlohmann::json::parse(tokenizer_config_json(64));
  EXPECT_EQ(config.at("unk_token"), "<unk>");
  EXPECT_EQ(config.at("bos_token"), "</s>");
  EXPECT_EQ(config.at("eos_token"), "</s>");
  EXPECT_EQ(config.at("model_max_length"), 64);
}

TEST_F(TokenizerTest, AVeryLongWordDoesNotEndTheTrainer) {
  const auto file = write_bytes(*folder_ / "long.txt", std::string(200'000, 'x') + "\n");
  train_tokenizer({inputs(), file.string()}, 400, 1'000'000, *folder_ / "long.model");
  EXPECT_EQ(Tokenizer(*folder_ / "long.model").vocab_size(), 400);
}

// That it is the same tokenizer there is told by test_peer_tokenizer.py.
TEST_F(TokenizerTest, LeavesOnlyIfItIsOfTheRecipe) {
  EXPECT_NE(tokenizer_json(model()), "");
  EXPECT_TRUE(can_be_exported(model()));
  for (const std::string recipe :
       {"--model_type=bpe", "--model_type=bpe --normalization_rule_name=identity",
        "--model_type=unigram --normalization_rule_name=identity --add_dummy_prefix=false "
        "--remove_extra_whitespaces=false"}) {
    const auto other = *folder_ / "other";
    ASSERT_TRUE(sentencepiece::SentencePieceTrainer::Train(
                    "--minloglevel=2 --byte_fallback --vocab_size=330 --eos_id=2 --input=" +
                    inputs() + " --model_prefix=" + other.string() + " " + recipe)
                    .ok());
    EXPECT_FALSE(can_be_exported(other.string() + ".model"));
    const std::string complaint = complaint_of([&] { tokenizer_json(other.string() + ".model"); });
    EXPECT_TRUE(mentions(complaint, "other.model: not a tokenizer whose ids")) << recipe;
  }
}

TEST_F(TokenizerTest, TooLittleTextIsAnError) {
  const auto train = [&](int64_t vocab_size) {
    return complaint_of(
        [&] { train_tokenizer({inputs()}, vocab_size, 2000, *folder_ / "none.model"); });
  };
  EXPECT_TRUE(mentions(train(30'000), "no tokenizer of 30000 ids"));
  const auto other = write_bytes(*folder_ / "other.jsonl", "{\"txt\":\"ka\"}\n");
  EXPECT_TRUE(mentions(
      complaint_of([&] { train_tokenizer({other.string()}, 400, 2000, *folder_ / "none.model"); }),
      "other.jsonl:1: no string \"text\""));
  EXPECT_TRUE(mentions(train(259), "a vocabulary of 259 is too small"));
  EXPECT_FALSE(mentions(train(260), "too small"));
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "none.model"));
}

// The trainer cannot be asked to stop, so it works where it can be ended.
TEST(InChildProcess, AnswersThrowsDiesAndIsEndedOnRequest) {
  const std::string long_answer(1'000'000, 'x');
  EXPECT_EQ(in_child_process("it", [&] { return long_answer; }), long_answer);
  EXPECT_EQ(complaint_of([] {
              in_child_process("it", []() -> std::string { throw Error("no such luck"); });
            }),
            "no such luck");
  EXPECT_EQ(complaint_of([] {
              in_child_process("it", []() -> std::string { std::raise(SIGKILL), std::abort(); });
            }),
            "it ended by signal 9");
  watch_for_stop({{}, {}, now_seconds() + 0.1});
  EXPECT_THROW(in_child_process("it", [] { return std::string(sleep(600), 'x'); }), Stopped);
  watch_for_stop({});
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
}

TEST_F(TokenizerTest, TrainingStopsOnRequest) {
  watch_for_stop({{}, {}, now_seconds()});
  EXPECT_THROW(train_tokenizer({inputs()}, 400, 200'000, *folder_ / "none.model"), Stopped);
  watch_for_stop({});
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "none.model"));
}

// A damaged model may still be one, of another hash, which the token files made with it name.
TEST_F(TokenizerTest, SurvivesDamage) {
  const std::string whole = read_text(model());
  const std::string hash = Tokenizer(model()).hash();
  const auto use = [](const std::filesystem::path& path) {
    const Tokenizer tokenizer(path);
    tokenizer.decode(tokenizer.encode("ka tomi\n  7 \xC3\xA9 \xF0\x9F\x98\x80"));
    return tokenizer.hash();
  };
  std::string bytes = whole;
  for (size_t i = 0; i < whole.size(); i += 3) {
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i / 3 % 8)));
    const auto path = write_bytes(*folder_ / "damaged.model", bytes);
    std::string used;
    const std::string complaint = complaint_of([&] { used = use(path); });
    EXPECT_NE(used, hash) << i;
    EXPECT_EQ(used.empty(), !complaint.empty()) << i;
    bytes[i] = whole[i];
  }
  for (size_t size = 0; size < whole.size(); size += 37) {
    const auto path =
        write_bytes(*folder_ / "damaged.model", std::string_view(whole).substr(0, size));
    std::string used;
    complaint_of([&] { used = use(path); });
    EXPECT_NE(used, hash) << size;
  }
}

TEST_F(TokenizerTest, RefusesWhatIsNoModel) {
  const auto open = [](const std::filesystem::path& path) {
    return complaint_of([&] { Tokenizer tokenizer(path); });
  };
  EXPECT_TRUE(mentions(open(*folder_ / "nowhere.model"), "nowhere.model"));
  EXPECT_TRUE(mentions(open(write_bytes(*folder_ / "x.model", "hello")), "not a SentencePiece"));
  EXPECT_TRUE(mentions(open(write_bytes(*folder_ / "y.model", "")), "not a SentencePiece"));
}

}  // namespace
}  // namespace smalltalk
