// The experiment files that the project ships: each loads, and opens with what a user wants to
// know.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <stdexcept>

#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/experiment/flops.hpp"
#include "smalltalk/core/experiment/sweep.hpp"
#include "smalltalk/core/system/files.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;

fs::path source_folder() {
  const char* folder = std::getenv("SMALLTALK_SOURCE_DIR");
  if (folder == nullptr) throw std::runtime_error("SMALLTALK_SOURCE_DIR is not set: run ctest");
  return folder;
}

TEST(ExperimentFiles, AllLoadAndSayWhatTheyAreFor) {
  const fs::path source = source_folder();
  int files = 0;
  for (const auto& entry : fs::directory_iterator(source / "jobs")) {
    if (entry.path().extension() != ".toml") continue;
    ++files;
    const std::string text = read_text(entry.path());
    for (const char* word : {"# Purpose:", "# Launch:", "# Hardware:"}) {
      EXPECT_NE(text.find(word), std::string::npos) << entry.path() << " lacks " << word;
    }
    if (!entry.path().filename().string().starts_with("sweep")) {
      EXPECT_NO_THROW(load_experiment(entry.path(), {})) << entry.path();
      continue;
    }
    const Sweep sweep = load_sweep(entry.path());
    for (const SweepRun& run : sweep.runs) {
      EXPECT_NO_THROW(load_experiment(source / sweep.experiment, run.overrides))
          << entry.path() << " " << run.name;
    }
  }
  EXPECT_GE(files, 12);
}

// Sizes of the papers: SmallTalk's table 1 (335M, 1.3B, 4.4M) and Lory's table 4 (0.3B, 1.5B, 7B).
TEST(ExperimentFiles, HaveThePapersSizes) {
  const fs::path jobs = source_folder() / "jobs";
  const auto millions = [&](const std::string& file, bool router) {
    const Experiment experiment = load_experiment(jobs / file, {});
    ModelConfig model = router ? experiment.router_model : experiment.expert_model;
    model.vocab_size = experiment.data.vocab_size;
    return static_cast<double>(parameter_count(model)) / 1e6;
  };
  EXPECT_NEAR(millions("smalltalk-335m-x4.toml", false), 335, 1);
  EXPECT_NEAR(millions("smalltalk-1300m-x32.toml", false), 1273, 2);
  EXPECT_NEAR(millions("smalltalk-335m-x4.toml", true), 4.4, 0.01);
  EXPECT_NEAR(millions("lory-300m-x8.toml", false), 370, 5);
  EXPECT_NEAR(millions("lory-1500m-x8.toml", false), 1458, 20);
  EXPECT_NEAR(millions("lory-7b-x4.toml", false), 6738, 2);
}

}  // namespace
}  // namespace smalltalk
