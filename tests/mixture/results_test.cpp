// The numbers of results.json from cells written by hand, against numbers worked out on paper: as
// functions of values, and once as the file that they are written to.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "mixture/evaluation/figures.hpp"
#include "small_mixture.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/run/provenance.hpp"
#include "support/complaint.hpp"
#include "written_run.hpp"

namespace smalltalk {
namespace {

constexpr double kTolerance = 1e-6;

SequenceLikelihoods of_cell(const std::string& unit) {
  return sum_by_sequence(small::likelihoods(small::cells().at(unit)), 3);
}

class Figures : public ::testing::Test {
 protected:
  const std::vector<SequenceLikelihoods> experts_ = {of_cell("experts/0"), of_cell("experts/1")};
  const SequenceLikelihoods dense_ = of_cell("baselines/dense");
  const SequenceLikelihoods mixture_ = under_assignment(experts_, small::route());
  const std::vector<uint16_t> domain_ = {2, 1, 1, 1, 1};
  const std::vector<int64_t> targets_ = {4, 4, 4, 4, 4};
};

// Routed 0 0 1 1 0, the mixture has 2+2, 4+4, 2+4, 4+4 and 2+4 bits: 14 in the prefixes, 18 behind
// them, 32 in all. Of four targets two lie in the prefix of three tokens and two behind it.
TEST_F(Figures, PerplexityOverAllTargetsAndBehindThePrefix) {
  EXPECT_NEAR(-total(mixture_), 32 * std::log(2), kTolerance);
  const Perplexity found = perplexity(mixture_, targets_, 3);
  EXPECT_NEAR(found.all, std::exp2(32.0 / 20), kTolerance);
  EXPECT_NEAR(found.after_prefix, std::exp2(18.0 / 10), kTolerance);
}

// Of a last target that is padding, and of a sequence that ends within its prefix, what is left
// counts.
TEST_F(Figures, PaddingIsNoTarget) {
  const Perplexity found = perplexity(mixture_, std::vector<int64_t>{3, 4, 1, 4, 4}, 3);
  EXPECT_NEAR(found.all, std::exp2(32.0 / 16), kTolerance);
  EXPECT_NEAR(found.after_prefix, std::exp2(18.0 / 7), kTolerance);
}

// 4 of 4 and 8, 6 of 8 and 6, 6 of 12 and 6, 8 of 12 and 8, 6 of 6 and 6, where the first stays.
TEST_F(Figures, TheBestInHindsight) {
  EXPECT_EQ(best_in_hindsight(experts_), (Assignment{0, 1, 1, 1, 0}));
}

TEST_F(Figures, PerplexityByDomain) {
  EXPECT_NEAR(perplexity_where(mixture_, domain_, 2, targets_).value(), std::exp2(4.0 / 4),
              kTolerance);
  EXPECT_NEAR(perplexity_where(mixture_, domain_, 1, targets_).value(), std::exp2(28.0 / 16),
              kTolerance);
  EXPECT_FALSE(perplexity_where(mixture_, domain_, 0, targets_).has_value());
}

// Expert 0 has the sequences 0, 1 and 4, expert 1 has 2 and 3, a third one none.
TEST_F(Figures, EachExpertBesideTheDenseModelOnItsSequences) {
  const std::vector<ExpertFigures> found =
      figures_by_expert(small::route(), 3, mixture_, &dense_, targets_);
  ASSERT_EQ(found.size(), 3U);
  EXPECT_DOUBLE_EQ(found[0].eval_share, 3.0 / 5);
  EXPECT_NEAR(found[0].perplexity.value(), std::exp2((4 + 8 + 6) / 12.0), kTolerance);
  EXPECT_NEAR(found[0].dense_perplexity.value(), std::exp2((4 + 8 + 12) / 12.0), kTolerance);
  EXPECT_DOUBLE_EQ(found[1].eval_share, 2.0 / 5);
  EXPECT_NEAR(found[1].perplexity.value(), std::exp2((6 + 8) / 8.0), kTolerance);
  EXPECT_NEAR(found[1].dense_perplexity.value(), std::exp2((12 + 8) / 8.0), kTolerance);
  EXPECT_EQ(found[2].eval_share, 0);
  EXPECT_FALSE(found[2].perplexity.has_value());
  EXPECT_FALSE(found[2].dense_perplexity.has_value());
  EXPECT_FALSE(
      figures_by_expert(small::route(), 2, mixture_, nullptr, targets_)[0].dense_perplexity);
}

//             unknown  prose  code
//   expert 0        0      2     1
//   expert 1        0      2     0
// Purity counts the largest of each column, 2 + 1 of 5; the other the largest of each row, 2 + 2.
TEST_F(Figures, PurityIsNotTheShareOfTheLargestDomain) {
  const RoutingOfDomains found = routing_of_domains(small::route(), domain_, 2, 3);
  EXPECT_DOUBLE_EQ(found.purity, 3.0 / 5);
  EXPECT_DOUBLE_EQ(found.largest_domain_share, 4.0 / 5);
  EXPECT_EQ(found.expert_by_domain, (std::vector<std::vector<double>>{{0, 0.5, 1}, {0, 0.5, 0}}));
}

// The FLOPs are worked out in small_mixture.hpp; two experts see 2 x 3 x 2 x 4 tokens.
TEST_F(Figures, CostsOfEachKind) {
  Experiment experiment = small::experiment();
  experiment.baselines.tfidf_shards = true;
  const MixtureFlops flops = mixture_flops(experiment, small::kTrainSequences);
  const std::vector<TrainUnit> units = train_units(experiment, small::kTrainSequences);
  std::map<std::string_view, ModelCosts> costs;
  for (const TrainedModel& model : models_of(units)) {
    costs[model.kind->name] = costs_of(experiment, model, flops, {.sharding = 1000, .choice = 70});
  }
  const ModelCosts& mixture = costs.at("mixture");
  EXPECT_EQ(mixture.train_tokens, 48);
  EXPECT_EQ(mixture.router_flops, 16'560 + 7'800);
  EXPECT_EQ(mixture.sharding_flops, 5'460);
  EXPECT_EQ(mixture.train_flops, 51'996);
  EXPECT_EQ(mixture.train_flops, flops.total());
  EXPECT_EQ(mixture.inference_flops, 616 + 2 * 390);

  const ModelCosts& dense = costs.at("dense");  // 15 steps of two sequences
  EXPECT_EQ(dense.train_tokens, 15 * 2 * 4);
  EXPECT_EQ(dense.train_flops, 15 * 3 * 2 * 616);
  EXPECT_EQ(dense.router_flops + dense.sharding_flops, 0);
  EXPECT_EQ(dense.inference_flops, 616);

  EXPECT_EQ(costs.at("random_shards").train_flops, 22'176);
  EXPECT_EQ(costs.at("random_shards").inference_flops, 616);
  EXPECT_EQ(costs.at("tfidf_kmeans").train_flops, 22'176 + 1000);
  EXPECT_EQ(costs.at("tfidf_kmeans").sharding_flops, 1000);
  EXPECT_EQ(costs.at("tfidf_kmeans").router_flops, 0);
  EXPECT_EQ(costs.at("tfidf_kmeans").inference_flops, 616 + 70);
}

class Results : public WrittenRun {
 protected:
  // As a rank leaves it: some exchanges, and bytes that should not have been sent.
  void write_ledger(const std::string& name, int64_t exchanges, int64_t bytes,
                    int64_t stray) const {
    const nlohmann::json entry = {{"phase", "route"},
                                  {"communicator", "world"},
                                  {"call", "MPI_Alltoallv"},
                                  {"calls", exchanges},
                                  {"bytes", bytes}};
    const nlohmann::json ledger = {{"entries", nlohmann::json::array({entry})},
                                   {"collectives", exchanges},
                                   {"world_bytes_after_shards", stray}};
    write_text_atomically(layout.ledger_folder() / (name + ".json"), ledger.dump());
  }
};

TEST_F(Results, TheFileHoldsTheseNumbers) {
  write_ledger("a-rank-0", 2, 30, 5);
  write_ledger("a-rank-1", 2, 10, 0);
  write_ledger("b-rank-0", 1, 4, 0);
  write_results(run, units);
  const auto found = parse_json(read_text(layout.results()), "results.json");
  const auto expect_bits = [](const nlohmann::json& perplexity, double bits) {
    EXPECT_NEAR(perplexity.get<double>(), std::exp2(bits), kTolerance);
  };
  const auto& mixture = found["models"]["mixture"];
  expect_bits(mixture["perplexity"]["all"], 32.0 / 20);
  expect_bits(mixture["perplexity"]["after_prefix"], 18.0 / 10);
  expect_bits(mixture["oracle_perplexity"]["all"], 30.0 / 20);
  expect_bits(mixture["oracle_perplexity"]["after_prefix"], 18.0 / 10);
  // In the validation text 12, 4 and 8 bits, as its routers send all to expert 0.
  expect_bits(mixture["validation_perplexity"]["all"], 24.0 / 12);
  EXPECT_NEAR(mixture["bits_per_byte"].get<double>(), 32.0 / 60, kTolerance);
  expect_bits(mixture["perplexity_per_domain"]["code"], 4.0 / 4);
  expect_bits(mixture["perplexity_per_domain"]["prose"], 28.0 / 16);
  EXPECT_EQ(mixture["perplexity_per_domain"].size(), 2U);
  // Embedding 16, query, key, value and output 16, feed-forward 16, three norms 6.
  EXPECT_EQ(mixture["parameters"], 54);
  EXPECT_EQ(mixture["models"], 2);
  EXPECT_EQ(mixture["steps"], 3);
  EXPECT_EQ(mixture["batch_size"], 2);
  EXPECT_EQ(mixture["train_tokens"], 48);
  EXPECT_EQ(found["train_tokens"], 48);
  EXPECT_EQ(mixture["train_flops"], 51'996);
  EXPECT_EQ(mixture["router_flops"], 24'360);
  EXPECT_EQ(mixture["sharding_flops"], 5'460);
  EXPECT_EQ(mixture["inference_flops_per_sequence"], 1'396);

  const auto& dense = found["models"]["dense"];
  expect_bits(dense["perplexity"]["all"], 44.0 / 20);
  expect_bits(dense["perplexity"]["after_prefix"], 22.0 / 10);
  expect_bits(dense["perplexity_per_domain"]["prose"], 40.0 / 16);
  EXPECT_EQ(dense["steps"], 15);
  EXPECT_EQ(dense["train_flops"], 55'440);
  EXPECT_FALSE(dense.contains("oracle_perplexity"));
  // In turn: three sequences at 2 bits a target, two at 3.
  expect_bits(found["models"]["random_shards"]["perplexity"]["all"], (3 * 8 + 2 * 12) / 20.0);
  EXPECT_EQ(found["models"].size(), 3U);

  const auto& experts = found["per_expert"];
  ASSERT_EQ(experts.size(), 2U);
  EXPECT_EQ(experts[0]["train_sequences"], 4);
  EXPECT_EQ(experts[1]["train_sequences"], 3);
  EXPECT_EQ(experts[0]["eval_share"], 0.6);
  expect_bits(experts[0]["perplexity"], 18.0 / 12);
  expect_bits(experts[0]["dense_perplexity"], 24.0 / 12);
  expect_bits(experts[1]["perplexity"], 14.0 / 8);
  expect_bits(experts[1]["dense_perplexity"], 20.0 / 8);

  const auto& routing = found["routing"];
  EXPECT_EQ(routing["purity"], 0.6);
  EXPECT_EQ(routing["largest_domain_share"], 0.8);
  EXPECT_EQ(routing["domains"], (nlohmann::json{"unknown", "prose", "code"}));
  EXPECT_EQ(routing["expert_by_domain"], (nlohmann::json{{0.0, 0.5, 1.0}, {0.0, 0.5, 0.0}}));
  EXPECT_EQ(found["corpus"]["train_tokens"], 29);
  EXPECT_EQ(found["corpus"]["test_tokens"], 21);
  EXPECT_EQ(found["corpus"]["validation_tokens"], 13);

  // The most exchanges of a rank; sums of all else.
  const auto& communication = found["communication"];
  EXPECT_EQ(communication["collectives"], 2);
  EXPECT_EQ(communication["world_bytes_after_shards"], 5);
  ASSERT_EQ(communication["phases"].size(), 1U);
  EXPECT_EQ(communication["phases"][0]["calls"], 2 + 2 + 1);
  EXPECT_EQ(communication["phases"][0]["bytes"], 30 + 10 + 4);
}

TEST_F(Results, PartsOfAnotherMixtureAreRefused) {
  const auto complaint = [&] { return complaint_of([&] { require_one_mixture(run, units); }); };
  ASSERT_EQ(complaint(), "");
  // A router that says the same of itself and has other weights is not one that made the shards.
  write_router(1, 0.5F);
  EXPECT_TRUE(mentions(complaint(), "shards.h5 does not belong to this mixture: its routers is"));
  write_router(1, 0.25F);
  EXPECT_EQ(complaint(), "");
  // The weights of another expert, and an expert of other shards.
  write_unit("experts/1", {{"unit", "experts/0"}});
  EXPECT_TRUE(mentions(complaint(), "its unit is experts/0"));
  write_unit("experts/1", {{"shards", "others"}});
  EXPECT_TRUE(mentions(complaint(), "its shards is others"));
  write_unit("experts/1", {});
  EXPECT_EQ(complaint(), "");
}

}  // namespace
}  // namespace smalltalk
