// The run folder of the small mixture, written by hand: all files that results are made of, with
// weights of a single number.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "small_mixture.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_writer.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/mixture/evaluation/evaluation.hpp"
#include "smalltalk/mixture/run/provenance.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {

class WrittenRun : public ::testing::Test {
 protected:
  using Metadata = std::map<std::string, std::string>;

  void SetUp() override {
    run.experiment = small::experiment();
    run.layout.root = folder_.path();
    write_tokenizer();
    // Sequences begin at 0, 4, 8, ...: the first of the test text is code, the others are prose.
    write_tokens("train", {29}, {0});
    write_tokens("validation", {13}, {1});
    write_tokens("test", {4, 12, 21}, {2, 1, 1});
    write_router(0, 0.25F);
    write_router(1, 0.25F);
    write_shards(layout.shards(), make_shards(std::vector<uint16_t>{0, 1, 0, 1, 0, 1, 0}, 2, {},
                                              {{"routers", routers_hash(run)},
                                               {"tokenizer", tokenizer_},
                                               {"prefix_tokens", "3"}}));
    for (const TrainUnit& unit : units) write_unit(unit.name, {});
    write_cells("test", small::cells(), small::route());
    write_cells("validation", small::validation_cells(), {0, 0, 0});
  }

  void write_router(int64_t e, float weight) const {
    write_weights(layout.router(e), weight,
                  {{"tokenizer", tokenizer_},
                   {"routing", part_hash(run.experiment, Part::routing)},
                   {"router", std::to_string(e)}});
  }
  void write_unit(const std::string& unit, Metadata other) const {
    const TrainUnit& of = find_unit(units, unit);
    other.merge(Metadata{{"training", training_hash(run.experiment, of)},
                         {"schedule", to_string(of.train.schedule())},
                         {"tokenizer", tokenizer_},
                         {"unit", unit},
                         {"shards", read_shard_info(layout.shards()).content_hash}});
    write_weights(layout.model(unit), 1, other);
  }

  smalltalk::Run run;
  const RunLayout& layout = run.layout;
  const std::vector<TrainUnit> units = train_units(small::experiment(), small::kTrainSequences);

 private:
  void write_tokenizer() {
    const std::filesystem::path text = folder_ / "text.jsonl";
    std::ofstream out(text);
    for (int i = 0; i < 200; ++i) {
      out << "{\"text\": \"abcdefghijklmnopqrstuvwxyz " << i << "\"}\n";
    }
    out.close();
    train_tokenizer({text.string()}, 300, 100'000, layout.tokenizer());
    tokenizer_ = Tokenizer(layout.tokenizer()).hash();
  }

  // One token stands for all; what counts is where documents end, and their domains.
  void write_tokens(const std::string& split, const std::vector<uint64_t>& ends,
                    const std::vector<uint16_t>& domains) const {
    const std::filesystem::path file = layout.tokens(split);
    TokenFileInfo info;
    info.num_tokens = static_cast<int64_t>(ends.back());
    info.num_documents = std::ssize(ends);
    info.vocab_size = 8;
    info.tokenizer_hash = tokenizer_;
    info.text_bytes = 3 * info.num_tokens;
    TokenWriter writer(file, file, info, {"unknown", "prose", "code"});
    writer.add_tokens(std::vector<uint16_t>(ends.back(), 5));
    writer.add_documents(ends, domains);
    writer.finish();
  }

  static void write_weights(const std::filesystem::path& model, float weight,
                            const Metadata& metadata) {
    std::filesystem::create_directories(model);
    write_safetensors(weights_file(model), {{"weight", {{1}, {&weight, 1}}}}, metadata);
  }

  void write_cells(const std::string& split, const std::map<std::string, small::Bits>& cells,
                   const Assignment& route) const {
    for (const TrainUnit& unit : units) {
      write_scores(EvalCell{split, unit.name}.file(layout), small::likelihoods(cells.at(unit.name)),
                   {});
    }
    ScoreMatrix routers(std::ssize(route), 2);
    for (int64_t i = 0; i < std::ssize(route); ++i) {
      routers.row(i)[route[static_cast<size_t>(i)]] = 1;
    }
    write_scores(routing_cell(split).file(layout), routers, {});
  }

  TemporaryFolder folder_;
  std::string tokenizer_;  // its hash
};

}  // namespace smalltalk
