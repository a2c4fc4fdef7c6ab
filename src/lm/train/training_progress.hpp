// How far a training run has come, and all else that a resumed run must know to log and to decide
// what the unbroken one does.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "lm/train/outlier_window.hpp"

namespace smalltalk {

struct TrainingProgress {
  int64_t step = 0;                      // steps done
  int64_t targets = 0;                   // tokens trained on, over the group
  OutlierWindow losses, gradient_norms;  // of the last steps
  int64_t skipped_steps = 0;             // whose updates were left out
  int64_t nonfinite_in_a_row = 0;        // the newest steps
  // Since the last logged step, without the steps whose loss is not finite.
  int64_t interval_steps = 0;
  double interval_loss = 0;              // sum over steps of the mean over ranks
  double interval_max_loss = -INFINITY;  // the highest of any rank in any step
  double last_loss = 0;                  // mean over the interval that was logged last
};

// The metadata of a checkpoint's file.
std::map<std::string, std::string> checkpoint_metadata(
    const TrainingProgress& progress, const std::map<std::string, std::string>& provenance);
// And back. `path` is for messages. Error: an entry that is missing or no number; other provenance.
TrainingProgress progress_of(const std::map<std::string, std::string>& metadata,
                             const std::map<std::string, std::string>& provenance,
                             const std::filesystem::path& path);

}  // namespace smalltalk
