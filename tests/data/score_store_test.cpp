#include "smalltalk/data/score_store.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "damage.hpp"
#include "data/hdf5_file.hpp"
#include "files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/data/score_file.hpp"

namespace smalltalk {
namespace {

using namespace test;
using Routers = std::vector<std::string>;
using Indices = std::vector<size_t>;

constexpr int64_t kSeqLength = 1024;
constexpr int64_t kBlock = 100;

const Routers kThree = {"aaaa", "bbbb", "cccc"};
const std::vector<int64_t> kPrefixes = {256, 64};

// What a router gives; of which corpus, the hash says.
float score_of(const std::string& router, int64_t prefix, int64_t sequence, uint64_t tokens_hash) {
  return -static_cast<float>(router[0] * 1'000'000 + prefix * 1000 + sequence) -
         static_cast<float>(tokens_hash) / 16;
}

std::vector<float> scores_of(const StoredBlock& block, const Routers& routers,
                             const std::vector<int64_t>& prefixes) {
  std::vector<float> scores;
  for (const int64_t prefix : prefixes) {
    for (int64_t row = 0; row < block.rows; ++row) {
      for (const std::string& router : routers) {
        scores.push_back(score_of(router, prefix, block.block * kBlock + row, block.tokens_hash));
      }
    }
  }
  return scores;
}

void score(ScoreStore& store, const StoredBlock& block, const Routers& routers = kThree,
           const std::vector<int64_t>& prefixes = kPrefixes) {
  store.write(block, routers, prefixes, scores_of(block, routers, prefixes));
}

void expect_scores(ScoreStore& store, const StoredBlock& block, const Routers& routers,
                   int64_t prefix) {
  EXPECT_TRUE(store.missing_routers(block, routers, prefix).empty());
  const StoredScores stored = store.read(block, routers, prefix);
  const std::vector<float> expected = scores_of(block, routers, {prefix});
  EXPECT_EQ(stored.block.first_sequence, static_cast<uint64_t>(block.block * kBlock));
  EXPECT_TRUE(std::equal(stored.block.values.begin(), stored.block.values.end(), expected.begin(),
                         expected.end()));
}

std::vector<std::filesystem::path> block_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with("block-")) files.push_back(entry.path());
  }
  return files;
}

class ScoreStoreTest : public testing::Test {
 protected:
  ScoreStore open(int64_t block_sequences = kBlock) {
    return ScoreStore(folder_ / "store", kSeqLength, block_sequences);
  }
  TemporaryFolder folder_;
};

TEST_F(ScoreStoreTest, ASecondRunFindsWhatTheFirstScored) {
  const StoredBlock first = {0, 100, 7};
  const StoredBlock last = {1, 42, 8};
  {
    ScoreStore store = open();
    EXPECT_EQ(store.missing_routers(first, kThree, 256), (Indices{0, 1, 2}));
    score(store, first);
    expect_scores(store, first, kThree, 256);
    EXPECT_EQ(store.missing_routers(last, kThree, 256), (Indices{0, 1, 2}));  // crashed here
  }
  ScoreStore store = open();
  expect_scores(store, first, kThree, 256);
  EXPECT_EQ(store.missing_routers(last, kThree, 256), (Indices{0, 1, 2}));
  score(store, last);
  expect_scores(store, last, kThree, 256);
  EXPECT_TRUE(mentions(complaint_of([&] { store.read({2, 100, 9}, kThree, 256); }), "block 2"));
}

TEST_F(ScoreStoreTest, AShorterPrefixWasScoredOnTheWay) {
  const StoredBlock block = {3, 100, 7};
  ScoreStore store = open();
  score(store, block);
  expect_scores(store, block, kThree, 64);
  EXPECT_EQ(store.missing_routers(block, kThree, 128), (Indices{0, 1, 2}));
  score(store, block, kThree, {128});
  expect_scores(store, block, kThree, 128);
  expect_scores(store, block, kThree, 256);
}

TEST_F(ScoreStoreTest, OneMoreRouterIsScoredAlone) {
  const StoredBlock block = {0, 100, 7};
  {
    ScoreStore store = open();
    score(store, block);
  }
  ScoreStore store = open();
  const Routers four = {"aaaa", "bbbb", "cccc", "dddd"};
  EXPECT_EQ(store.missing_routers(block, four, 256), Indices{3});
  EXPECT_TRUE(mentions(complaint_of([&] { store.read(block, four, 256); }), "dddd"));
  score(store, block, {"dddd"});
  expect_scores(store, block, four, 256);
  ScoreStore third = open();
  expect_scores(third, block, {"dddd", "bbbb"}, 64);
}

TEST_F(ScoreStoreTest, ColumnsComeInTheOrderAskedFor) {
  const StoredBlock block = {0, 17, 7};
  ScoreStore store = open();
  score(store, block);
  for (const Routers& routers : {kThree, Routers{"cccc", "aaaa", "bbbb"}, Routers{"bbbb"},
                                 Routers{"bbbb", "aaaa"}, Routers{"aaaa", "aaaa"}}) {
    expect_scores(store, block, routers, 256);
    expect_scores(store, block, routers, 64);
  }
}

// What routers gave on their own, and what they gave as two of three, from which nothing is put
// together when it lies there whole.
TEST_F(ScoreStoreTest, TheSetOfExactlyTheseRoutersComesFirst) {
  const StoredBlock block = {0, 100, 7};
  ScoreStore store = open();
  score(store, block);
  for (const Routers& two : {Routers{"aaaa", "bbbb"}, Routers{"bbbb", "cccc"},
                             Routers{"aaaa", "cccc"}, Routers{"cccc", "bbbb"}}) {
    const std::vector<float> own(200, two == Routers{"aaaa", "bbbb"} ? -1.0F : -2.0F);
    store.write(block, two, std::vector<int64_t>{256}, own);
    const StoredScores stored = store.read(block, two, 256);
    EXPECT_EQ(std::vector<float>(stored.block.values.begin(), stored.block.values.end()), own);
  }
}

TEST_F(ScoreStoreTest, TheWholeSetIsMappedAndOutlivesItsFile) {
  const StoredBlock block = {0, 100, 7};
  ScoreStore store = open();
  score(store, block);
  const StoredScores a = store.read(block, kThree, 256);
  const std::vector<float> before(a.block.values.begin(), a.block.values.end());
  score(store, {0, 100, 9});  // other tokens: another file of the same name
  EXPECT_EQ(before, std::vector<float>(a.block.values.begin(), a.block.values.end()));
  EXPECT_EQ(before, scores_of(block, kThree, {256}));
  EXPECT_EQ(store.missing_routers(block, kThree, 256), (Indices{0, 1, 2}));
}

TEST_F(ScoreStoreTest, OtherTokensOrAGrownBlockAreScoredAnew) {
  ScoreStore store = open();
  const StoredBlock before = {1, 42, 7};
  score(store, before);
  EXPECT_EQ(store.missing_routers({1, 42, 8}, kThree, 256), (Indices{0, 1, 2}));
  EXPECT_EQ(store.missing_routers({1, 43, 7}, kThree, 256), (Indices{0, 1, 2}));
  EXPECT_EQ(store.missing_routers({2, 42, 7}, kThree, 256), (Indices{0, 1, 2}));
  const StoredBlock grown = {1, 100, 9};
  score(store, grown);
  expect_scores(store, grown, kThree, 256);
  EXPECT_EQ(block_files(folder_ / "store").size(), 1u);
}

TEST_F(ScoreStoreTest, TheFirstChoiceOfBlocksStays) {
  {
    ScoreStore store = open();
    score(store, {0, 100, 7});
  }
  ScoreStore store = open(64);
  EXPECT_EQ(store.block_sequences(), kBlock);
  expect_scores(store, {0, 100, 7}, kThree, 256);
  // Another length of sequences is another matter, in the same folder.
  const ScoreStore other(folder_ / "store", 512, 64);
  EXPECT_EQ(other.block_sequences(), kBlock);
  EXPECT_EQ(other.missing_routers({0, 100, 7}, kThree, 256), (Indices{0, 1, 2}));
}

TEST_F(ScoreStoreTest, ADamagedBlockIsMissingAndNamed) {
  ScoreStore store = open();
  const StoredBlock block = {0, 100, 7};
  score(store, block);
  score(store, {1, 100, 8});
  std::filesystem::path file = block_files(folder_ / "store")[0];
  if (!file.string().ends_with("block-00000000.h5")) file = block_files(folder_ / "store")[1];
  const int64_t offset = Hdf5File::open(file).contiguous_offset("scores");
  std::string bytes = read_text(file);
  bytes[static_cast<size_t>(offset)] ^= 1;
  for (const std::string& bad : {bytes, bytes.substr(0, bytes.size() / 2), std::string()}) {
    write_bytes(file, bad);
    testing::internal::CaptureStderr();
    EXPECT_EQ(store.missing_routers(block, kThree, 256), (Indices{0, 1, 2}));
    EXPECT_TRUE(mentions(testing::internal::GetCapturedStderr(), "block-00000000.h5"));
  }
  expect_scores(store, {1, 100, 8}, kThree, 256);
  score(store, block);
  expect_scores(store, block, kThree, 256);
}

TEST_F(ScoreStoreTest, DamageIsNoticedWhereverItIs) {
  ScoreStore store = open();
  const StoredBlock block = {0, 5, 7};
  score(store, block);
  const std::filesystem::path file = block_files(folder_ / "store")[0];
  const std::string whole = read_text(file);
  const std::vector<float> expected = scores_of(block, kThree, {64});
  testing::internal::CaptureStderr();  // warnings
  std::string bytes = whole;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    bytes[i] = static_cast<char>(bytes[i] ^ (1 << (i % 8)));
    write_bytes(file, bytes);
    if (store.missing_routers(block, kThree, 64).empty()) {
      const StoredScores stored = store.read(block, kThree, 64);
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), stored.block.values.begin()));
    }
    bytes[i] = whole[i];
  }
  EXPECT_TRUE(mentions(testing::internal::GetCapturedStderr(), "damaged"));
  expect_damage_is_noticed(write_bytes(folder_ / "block.h5", whole),
                           [](const std::filesystem::path& path) { return describe_hdf5(path); });
}

TEST_F(ScoreStoreTest, ADamagedListOfASetIsAMissingSet) {
  const StoredBlock block = {0, 100, 7};
  {
    ScoreStore store = open();
    score(store, block);
  }
  const std::filesystem::path list = block_files(folder_ / "store")[0].parent_path() / "set.json";
  std::string text = read_text(list);
  text[text.find("aaaa")] = 'x';
  for (const std::string& bad : {text, std::string("{"), std::string("{}")}) {
    write_bytes(list, bad);
    testing::internal::CaptureStderr();
    ScoreStore store = open();
    EXPECT_TRUE(mentions(testing::internal::GetCapturedStderr(), "set.json"));
    EXPECT_EQ(store.missing_routers(block, kThree, 256), (Indices{0, 1, 2}));
  }
  ScoreStore store = open();
  score(store, block);
  ScoreStore again = open();
  expect_scores(again, block, kThree, 256);
}

TEST_F(ScoreStoreTest, SeesSetsThatAnotherProcessBringsLater) {
  const StoredBlock block = {0, 100, 7};
  ScoreStore early = open();
  ScoreStore other = open();
  score(other, block);
  const StoredScores stored = early.read(block, kThree, 256);
  EXPECT_EQ(stored.block.values.size(), 300u);
}

// Exit code of a child process that opens the store and scores every third block.
int score_as_rank(const std::filesystem::path& folder, int rank) {
  try {
    ScoreStore store(folder, kSeqLength, kBlock);
    for (int64_t block = rank; block < 30; block += 3) {
      score(store, {block, kBlock, static_cast<uint64_t>(block)});
    }
    return 0;
  } catch (const Error& error) {
    log_error(error.what());
    return 1;
  }
}

TEST_F(ScoreStoreTest, ProcessesWriteAtOnce) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < 3; ++rank) {
    children.push_back(fork());
    if (children.back() == 0) _exit(score_as_rank(folder_ / "store", rank));
  }
  for (const pid_t child : children) {
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  ScoreStore store = open();
  for (int64_t block = 0; block < 30; ++block) {
    expect_scores(store, {block, kBlock, static_cast<uint64_t>(block)}, kThree, 256);
  }
}

TEST_F(ScoreStoreTest, HashesOfBlocks) {
  const ScoreStore store = open();
  EXPECT_FALSE(store.read_block_hashes("0123"));
  const std::vector<uint64_t> hashes = {~uint64_t{0}, 2, 3};
  store.write_block_hashes("0123", hashes);
  EXPECT_EQ(store.read_block_hashes("0123"), hashes);
  EXPECT_FALSE(store.read_block_hashes("0124"));
  EXPECT_FALSE(ScoreStore(folder_ / "store", 512, kBlock).read_block_hashes("0123"));
  const std::filesystem::path path = folder_ / "store" / "tokens-0123.h5";
  EXPECT_EQ(nlohmann::json::parse(describe_hdf5(path))["blocks"], 3);
  const std::string whole = read_text(path);
  write_bytes(path, whole.substr(0, whole.size() - 1));
  testing::internal::CaptureStderr();
  EXPECT_FALSE(store.read_block_hashes("0123"));
  EXPECT_TRUE(mentions(testing::internal::GetCapturedStderr(), "tokens-0123.h5"));
}

}  // namespace
}  // namespace smalltalk
