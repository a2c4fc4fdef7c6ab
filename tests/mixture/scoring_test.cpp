// Scores of sequences against sums of log-probabilities; stopped anywhere, they go on from their
// notes to the same bits.
#include "smalltalk/mixture/routing/scoring.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <numeric>

#include "mixture/routing/scoring_notes.hpp"
#include "mixture_fixture.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/sampler.hpp"
#include "smalltalk/lm/model/transformer_stack.hpp"
#include "smalltalk/mixture/routing/score_exchange.hpp"

namespace smalltalk {
namespace {

class Scoring : public MixtureFixture {
 protected:
  void SetUp() override {
    MixtureFixture::SetUp();
    routers = std::make_unique<TransformerStack>(experiment.router_model, experiment.device,
                                                 std::vector<uint64_t>{3, 4});
    ids.resize(run.tokens->num_sequences(kLength));
    std::iota(ids.rbegin(), ids.rend(), uint64_t{0});  // not in their order
  }
  void TearDown() override {
    watch_for_stop({});
    MixtureFixture::TearDown();
  }

  std::vector<float> score(std::span<const uint64_t> some, ScoringNotes* notes = nullptr) const {
    return score_sequences(*routers, run.tokens, some, kLength, prefixes, notes);
  }
  ScoringNotes notes_of(const std::string& work) const { return {folder / "notes", work}; }

  std::unique_ptr<TransformerStack> routers;
  std::vector<uint64_t> ids;
  const std::vector<int64_t> prefixes = {2, 5, 12};
};

TEST_F(Scoring, ScoresAreSumsOverPrefixes) {
  const auto some = std::span(ids).first(100);
  const std::vector<float> scores = score(some);
  ASSERT_EQ(scores.size(), 2 * some.size() * 3);
  auto next = scores.begin();
  for (int64_t router = 0; router < 2; ++router) {
    for (const uint64_t id : some) {
      std::vector<int64_t> sequence(12);
      run.tokens->read(static_cast<int64_t>(id) * kLength, sequence);
      for (const int64_t prefix : prefixes) {
        const auto beginning = std::span(sequence).first(static_cast<size_t>(prefix));
        ASSERT_NEAR(*next++, log_likelihood((*routers)[router], beginning), 1e-4)
            << router << " " << id << " " << prefix;
      }
    }
  }
  EXPECT_TRUE(score({}).empty());
}

TEST_F(Scoring, ScoresDoNotDependOnTheParts) {
  const Transformer& router = (*routers)[1];
  const auto scores_of = [&](std::span<const uint64_t> some) {
    return score_sequences(router, run.tokens, some, kLength, prefixes);
  };
  const std::vector<float> all = scores_of(ids);
  for (const int parts : {2, 3}) {
    std::vector<float> joined;
    for (int part = 0; part < parts; ++part) {
      const auto [first, last] = ScoringShare{{1}, part, parts}.rows(std::ssize(ids));
      const auto piece = scores_of(
          std::span(ids).subspan(static_cast<size_t>(first), static_cast<size_t>(last - first)));
      joined.insert(joined.end(), piece.begin(), piece.end());
    }
    EXPECT_EQ(joined, all);
  }
}

// Every start is asked to stop at once: it does one piece.
TEST_F(Scoring, GoesOnFromItsNotesToTheSameBits) {
  const std::vector<float> whole = score(ids);
  watch_for_stop({{}, {}, now_seconds()});
  std::vector<float> scores;
  int starts = 0;
  for (; scores.empty(); ++starts) {
    ASSERT_LT(starts, 100);
    ScoringNotes notes = notes_of("the work");
    try {
      scores = score(ids, &notes);
    } catch (const Stopped&) {
      EXPECT_TRUE(std::filesystem::exists(folder / "notes"));
    }
  }
  EXPECT_GT(starts, 5);
  EXPECT_EQ(scores, whole);
}

TEST_F(Scoring, RoutingGoesOnFromItsNotes) {
  ModelConfig config = (*routers)[0].config();
  config.merged_experts = 3;
  config.segment_tokens = 4;
  const Transformer model(config, DeviceConfig(), 5);
  constexpr int64_t kRows = 20;
  const RowSource rows = ordered_rows(run.tokens, {}, kLength, kLength + 1);
  const auto fill = [&](RowScores& weights) {  // of the second segment
    weights.fill(model, rows, [&](int64_t, const RowRouting& routing, std::span<double> of_row) {
      std::ranges::copy(routing.of(0, 1, 3), of_row.begin());
    });
    return std::vector<double>(weights.values().begin(), weights.values().end());
  };
  RowScores at_once(1, kRows, 3);
  const std::vector<double> whole = fill(at_once);
  watch_for_stop({{}, {}, now_seconds()});
  for (int64_t row = 0; row + 1 < kRows; ++row) {
    ScoringNotes notes = notes_of("the work");
    RowScores weights(1, kRows, 3, &notes);
    ASSERT_EQ(weights.done(), row);
    EXPECT_THROW(fill(weights), Stopped);
  }
  ScoringNotes notes = notes_of("the work");
  RowScores weights(1, kRows, 3, &notes);
  EXPECT_EQ(fill(weights), whole);
}

TEST_F(Scoring, NotesOfOtherWorkOrDamagedCountAsNone) {
  const std::vector<float> whole = score(ids);
  watch_for_stop({{}, {}, now_seconds()});
  ScoringNotes first = notes_of("the work");
  EXPECT_THROW(score(ids, &first), Stopped);
  watch_for_stop({});
  const auto done = [&](const std::string& work) {
    ScoringNotes notes = notes_of(work);
    return RowScores(2, std::ssize(ids), 3, &notes).done();
  };
  EXPECT_GT(done("the work"), 0);
  EXPECT_EQ(done("the"), 0);
  EXPECT_EQ(done("other work"), 0);
  std::string text = read_text(folder / "notes");
  text.back() ^= 1;
  write_text_atomically(folder / "notes", text);
  EXPECT_EQ(done("the work"), 0);
  ScoringNotes notes = notes_of("the work");
  EXPECT_EQ(score(ids, &notes), whole);
}

}  // namespace
}  // namespace smalltalk
