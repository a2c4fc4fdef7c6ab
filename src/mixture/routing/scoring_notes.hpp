// Scores that were found before a job was stopped or died, so that it goes on behind them. Private
// to mixture.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace smalltalk {

class ScoringNotes {
 public:
  // `work` names everything that decides the scores; notes of other work count as none.
  ScoringNotes(std::filesystem::path file, std::string work);

  // Fills the first rows of scores [num_models, count, width] with what was noted and returns how
  // many they are; 0 if there is nothing, or it is damaged.
  int64_t read(int64_t num_models, int64_t count, int64_t width, std::span<double> scores) const;
  // Notes the first `done` rows.
  void write(int64_t num_models, int64_t count, int64_t width, int64_t done,
             std::span<const double> scores);
  // A minute has passed since the last write, or since the notes were made.
  bool due() const;
  // The scores are safe somewhere else.
  void remove() const;

 private:
  std::filesystem::path file_;
  std::string work_;
  double last_write_;
};

}  // namespace smalltalk
