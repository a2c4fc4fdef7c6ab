// Reruns of the sharding: what is known is not computed again, and what is computed does not depend
// on what was known or on the ranks.
#include "smalltalk/mixture/routing/sharding.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "mixture_fixture.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/mixture/routing/corpus_scores.hpp"
#include "smalltalk/mixture/routing/explanation.hpp"
#include "smalltalk/mixture/routing/router_em.hpp"
#include "smalltalk/mixture/routing/shard_assignment.hpp"
#include "smalltalk/mixture/run/units.hpp"
#include "support/complaint.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

class Sharding : public MixtureFixture {
 protected:
  void SetUp() override {
    MixtureFixture::SetUp();
    experiment.mixture.rounds = 3;
    experiment.mixture.prefix_tokens = kLength;
    train_routers(run, RouterHosting::alone(2));
  }

  void shard(const ShardOptions& options = {}, const HostCollectives& world = {}) {
    shard_corpus(run, world, options);
  }
  nlohmann::json report() const {
    return nlohmann::json::parse(read_text(layout.sharding_report()));
  }
  int64_t computed() const { return report().at("scores_computed").get<int64_t>(); }

  // All files of the run with their times of change.
  std::map<std::string, fs::file_time_type> state() const {
    std::map<std::string, fs::file_time_type> files;
    for (const auto& entry : fs::recursive_directory_iterator(layout.root)) {
      files[entry.path().string()] = fs::last_write_time(entry.path());
    }
    return files;
  }

  // The text again with more documents at its end.
  void grow(uint64_t documents) {
    std::ofstream out(folder / "text.jsonl", std::ios::app);
    for (uint64_t i = 0; i < documents; ++i) {
      std::string word;
      for (uint64_t k = 0; k < kLength - 1; ++k) {
        word += static_cast<char>('a' + (i + (i % 2 == 0 ? k : 25 * k)) % 26);
      }
      out << "{\"text\": \"" << word << "\"}\n";
    }
    out.close();
    fs::remove(layout.tokens("train"));
    PrepareOptions options;
    options.inputs = {(folder / "text.jsonl").string()};
    options.tokenizer = folder / "tokenizer.model";
    options.out = layout.tokens("train");
    prepare_tokens(options);
    open_tokens();
  }
};

TEST_F(Sharding, ARerunReadsNoTokensAndWritesNothing) {
  shard();
  const int64_t n = report().at("sequences").get<int64_t>();
  EXPECT_EQ(computed(), 2 * n);
  // Tokens that nobody can read show that nobody tries.
  {
    std::fstream file(layout.tokens("train"), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(fs::file_size(layout.tokens("train")) / 2));
    file.put('\xFF');
    file.put('\xFF');
  }
  open_tokens();
  ASSERT_THROW(hash_of_sequences(*run.tokens, 0, n, kLength), Error);
  const auto before = state();
  shard();
  EXPECT_EQ(state(), before);
}

// The same whatever ranks do it: bytes of the file, not only the assignment.
TEST_F(Sharding, RanksDoNotShow) {
  shard();
  const std::string alone = read_text(layout.shards());
  const std::string control = read_text(layout.random_shards());
  for (const int ranks : {2, 3}) {
    fs::remove_all(layout.scores());
    fs::remove_all(layout.shard_file("").parent_path());
    fs::remove(layout.shards());
    run_thread_ranks(ranks, [&](const HostCollectives& world) { shard({}, world); });
    EXPECT_EQ(read_text(layout.shards()), alone) << ranks << " ranks";
    EXPECT_EQ(read_text(layout.random_shards()), control);
  }
}

// Learned from one round of 1,024 sequences, they know what the routers would say of all 1,200.
TEST_F(Sharding, NgramsTakeThePlaceOfRouters) {
  shard();
  const Shards by_routers = read_shards(layout.shards());
  experiment.mixture.sharding = smalltalk::Sharding::ngrams;  // not this fixture
  EXPECT_EQ(experiment.mixture.rounds_that_teach(), 1);
  shard();
  EXPECT_EQ(report().at("scored_by"), "ngrams");
  EXPECT_EQ(computed(), 0);
  const Shards by_ngrams = read_shards(layout.shards());
  int64_t same = 0;
  for (size_t i = 0; i < by_ngrams.expert.size(); ++i) {
    same += by_ngrams.expert[i] == by_routers.expert[i] ? 1 : 0;
  }
  EXPECT_GT(10 * same, 9 * std::ssize(by_ngrams.expert));
  EXPECT_EQ(by_ngrams.offsets, by_routers.offsets);

  // Why: a probability of each expert; the likeliest has the sequence, or was full.
  const ScoresOf scores_of = scores_for_shards(run, layout.shards());
  double sum = 0;
  for (const float score : scores_of(7)) sum += std::exp(score);
  EXPECT_NEAR(sum, 1, 1e-5);
  for (int64_t i = 0; i < std::ssize(by_ngrams.expert); i += 100) {
    const SequenceExplanation why = explain_sequence(layout.shards(), i, scores_of);
    EXPECT_EQ(why.displaced(), why.offers[0].expert != by_ngrams.expert[static_cast<size_t>(i)]);
  }

  const std::string alone = read_text(layout.shards());
  for (const int ranks : {2, 3}) {
    fs::remove_all(layout.shard_file("").parent_path());
    fs::remove(layout.shards());
    run_thread_ranks(ranks, [&](const HostCollectives& world) { shard({}, world); });
    EXPECT_EQ(read_text(layout.shards()), alone) << ranks << " ranks";
  }
  // What came with new text is told apart, too, and nothing else.
  grow(300);
  ShardOptions append;
  append.append = true;
  shard(append);
  const Shards more = read_shards(layout.shards());
  EXPECT_EQ(more.expert.size(), by_ngrams.expert.size() + 300);
  EXPECT_TRUE(std::equal(by_ngrams.expert.begin(), by_ngrams.expert.end(), more.expert.begin()));

  fs::remove(layout.round(3));
  fs::remove_all(layout.shard_file("").parent_path());
  fs::remove(layout.shards());
  EXPECT_TRUE(mentions(complaint_of([&] { shard(); }), layout.round(3).string()));
}

TEST_F(Sharding, OtherCapacitiesAndMethodsNeedNoScores) {
  shard();
  const std::string balanced = read_text(layout.shards());
  const fs::path first = fs::read_symlink(layout.shards());
  ShardOptions options;
  options.shares = {3, 1};
  shard(options);
  EXPECT_EQ(computed(), 0);
  const ShardInfo uneven = read_shard_info(layout.shards());
  EXPECT_NEAR(static_cast<double>(uneven.size_of(0)) / static_cast<double>(uneven.size_of(1)), 3,
              0.05);
  // The old file is as it was.
  EXPECT_NE(fs::read_symlink(layout.shards()), first);
  EXPECT_EQ(read_text(layout.root / first), balanced);
  for (const auto method : {AssignmentMethod::margin, AssignmentMethod::optimal}) {
    options = {};
    options.assign.method = method;
    shard(options);
    EXPECT_EQ(computed(), 0);
    EXPECT_EQ(report().at("method"), to_string(method));
    EXPECT_LE(report().at("mean_regret").get<double>(),
              report().at("mean_regret_bound").get<double>() + 1e-9);
  }
  shard();  // back to the first: only the link changes
  EXPECT_EQ(fs::read_symlink(layout.shards()), first);
}

TEST_F(Sharding, AShorterPrefixIsKnown) {
  shard();
  ShardOptions options;
  options.prefix_tokens = 8;
  shard(options);
  EXPECT_EQ(computed(), 0);
  EXPECT_EQ(read_shard_info(layout.shards()).provenance.at("prefix_tokens"), "8");
  options.prefix_tokens = 5;
  EXPECT_THROW(shard(options), Error);
}

TEST_F(Sharding, OneOtherRouterIsScoredAlone) {
  shard();
  const int64_t n = report().at("sequences").get<int64_t>();
  const Transformer other(experiment.router_model, experiment.device, 77);
  other.save(layout.router(1), {});
  shard();
  EXPECT_EQ(computed(), n);
  // As if nothing had been known.
  const std::string rerun = read_text(layout.shards());
  fs::remove_all(layout.scores());
  fs::remove_all(layout.shard_file("").parent_path());
  fs::remove(layout.shards());
  shard();
  EXPECT_EQ(computed(), 2 * n);
  EXPECT_EQ(read_text(layout.shards()), rerun);
}

TEST_F(Sharding, OneMoreExpertIsScoredAlone) {
  shard();
  const int64_t n = report().at("sequences").get<int64_t>();
  const Transformer third(experiment.router_model, experiment.device, 78);
  third.save(layout.router(2), {});
  experiment.mixture.experts = 3;
  shard();
  EXPECT_EQ(computed(), n);
  EXPECT_EQ(read_shard_info(layout.shards()).num_experts(), 3);
}

// Killed half-way: the blocks that were written are not scored again, a damaged one is.
TEST_F(Sharding, LostAndDamagedBlocksAloneAreScoredAgain) {
  shard();
  const std::string whole = read_text(layout.shards());
  std::vector<fs::path> blocks;
  for (const auto& entry : fs::recursive_directory_iterator(layout.scores())) {
    if (entry.path().filename().string().starts_with("block-")) blocks.push_back(entry.path());
  }
  ASSERT_GE(blocks.size(), 3u);
  std::sort(blocks.begin(), blocks.end());
  fs::remove(blocks[0]);
  fs::resize_file(blocks[1], fs::file_size(blocks[1]) / 2);
  fs::remove_all(layout.shard_file("").parent_path());
  fs::remove(layout.shards());
  shard();
  EXPECT_EQ(computed(), 2 * 2 * 256);
  EXPECT_EQ(read_text(layout.shards()), whole);
}

TEST_F(Sharding, AppendKeepsWhatWasAssigned) {
  shard();
  const Shards before = read_shards(layout.shards());
  ShardOptions append;
  append.append = true;
  shard(append);  // nothing new: nothing to do
  EXPECT_EQ(read_shards(layout.shards()).expert, before.expert);

  grow(300);
  shard(append);
  const Shards after = read_shards(layout.shards());
  ASSERT_GT(after.expert.size(), before.expert.size());
  EXPECT_TRUE(std::equal(before.expert.begin(), before.expert.end(), after.expert.begin()));
  EXPECT_EQ(after.kept_sequences, static_cast<int64_t>(before.expert.size()));
  EXPECT_LE(after.of_expert(0).size() - after.of_expert(1).size(), 1u);
  // Whole blocks of the old text are known.
  EXPECT_LE(computed(), 2 * (300 + 256));

  // All anew is another assignment of the same scores.
  shard();
  EXPECT_EQ(computed(), 0);
  EXPECT_EQ(read_shard_info(layout.shards()).kept_sequences, 0);
}

TEST_F(Sharding, AppendIsRefusedWhereItCannotBe) {
  ShardOptions append;
  append.append = true;
  EXPECT_THROW(shard(append), Error);  // to nothing
  shard();
  grow(40);
  append.shares = {9, 1};  // expert 1 has more already
  try {
    shard(append);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("expert 1 keeps"), std::string::npos) << error.what();
  }
  // Other text before the old one is no extension.
  std::ofstream(folder / "text.jsonl", std::ios::trunc) << "";
  grow(2000);
  append.shares = {};
  EXPECT_THROW(shard(append), Error);
}

// Pieces begin and end where they do, whoever holds their rows.
TEST_F(Sharding, AnAssignmentIsWrittenFromAllRanksInPieces) {
  const std::vector<int64_t> ends = {3'000'000, 3'000'000, 4'500'000, 4'500'005};  // of ranks
  Assignment all;
  std::vector<int64_t> counts(5, 0);
  for (int64_t i = 0; i < ends.back(); ++i) {
    all.push_back(static_cast<uint16_t>(derive_seed(3, "expert", static_cast<uint64_t>(i)) % 5));
    ++counts[all.back()];
  }
  const fs::path file = folder / "pieces.h5";
  run_thread_ranks(4, [&](const HostCollectives& world) {
    const auto rank = static_cast<size_t>(world.rank);
    const int64_t first = rank == 0 ? 0 : ends[rank - 1];
    AssignmentOutcome outcome;
    outcome.expert.assign(all.begin() + first, all.begin() + ends[rank]);
    outcome.stats.assigned_counts = counts;
    outcome.rule = {AssignmentMethod::random, counts, {}, {}};
    write_assignment(file, keep_none(5), outcome, world, {});
  });
  EXPECT_TRUE(read_shards(file).expert == all);
}

// Who trains keeps the shards that it began with.
TEST_F(Sharding, ATrainingKeepsItsShards) {
  shard();
  const std::string hash = read_shard_info(layout.shards()).content_hash;
  experiment.expert_train.steps = 4;
  const TrainUnit unit = train_units(experiment, 100)[0];
  const auto trained = [&] {
    train_unit(run, unit, {});
    return Transformer::load(layout.model(unit.name), experiment.device).weights();
  };
  const auto weights = trained();

  // Begun again after another sharding: the same weights. In a new folder: others.
  ShardOptions uneven;
  uneven.shares = {1, 3};
  shard(uneven);
  for (const bool keep : {true, false}) {
    for (const char* file : {"training.json", "model.safetensors", "config.json"}) {
      fs::remove(layout.model(unit.name) / file);
    }
    if (!keep) fs::remove_all(layout.model(unit.name));
    EXPECT_EQ(trained() == weights, keep);
    const std::string now = read_text(layout.model(unit.name) / "shards.txt").substr(0, 16);
    EXPECT_EQ(now == hash, keep);
  }
}

}  // namespace
}  // namespace smalltalk
