// What the tests of the job `assign` share: score files, and runs of the job on them.
#pragma once

#include <random>
#include <span>
#include <vector>

#include "job_runner.hpp"
#include "smalltalk/data/score_file.hpp"

namespace smalltalk {

class AssignTest : public JobTest {
 protected:
  void SetUp() override {}  // no corpus, no experiment

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string files(const std::string& scores, const std::string& out) const {
    return "assign --scores " + path(scores) + " --out " + path(out) + " ";
  }

  // Without any launcher.
  static Outcome run_alone(const std::string& arguments) {
    return run_command("timeout 120 " + from_environment("SMALLTALK_BINARY") + " " + arguments);
  }

  // Scores in [lowest, highest] at so many levels: few of them make ties. Every third expert is
  // liked better than the others.
  static ScoreMatrix random_scores(int64_t num_sequences, int64_t num_experts, double lowest = -64,
                                   double highest = -32, uint64_t levels = 40) {
    std::mt19937_64 random(1);
    ScoreMatrix scores(num_sequences, num_experts);
    for (int64_t i = 0; i < num_sequences; ++i) {
      for (int64_t e = 0; e < num_experts; ++e) {
        uint64_t level = random() % levels;
        if (e % 3 == 0) level = std::max(level, random() % levels);
        scores.row(i)[static_cast<size_t>(e)] = static_cast<float>(
            lowest + (highest - lowest) * static_cast<double>(level) / static_cast<double>(levels));
      }
    }
    return scores;
  }
  ScoreMatrix write_random_scores(const std::string& name, int64_t num_sequences,
                                  int64_t num_experts) const {
    ScoreMatrix scores = random_scores(num_sequences, num_experts);
    write_scores(path(name), scores, {});
    return scores;
  }
};

}  // namespace smalltalk
