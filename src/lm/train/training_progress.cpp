#include "lm/train/training_progress.hpp"

#include <fmt/format.h>

#include <cstdlib>
#include <sstream>
#include <stdexcept>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr const char* kProvenance = "provenance.";

// Numbers as text that reads back as the same bits.
std::string exact(double value) { return fmt::format("{:a}", value); }

std::string exact(const OutlierWindow& window) {
  std::string text;
  for (double value : window.values()) text += exact(value) + " ";
  return text;
}

// The metadata of one file.
class Entries {
 public:
  Entries(const std::map<std::string, std::string>& metadata, const std::filesystem::path& path)
      : metadata_(metadata), path_(path.string()) {}

  const std::string& text(const std::string& key) const {
    const auto found = metadata_.find(key);
    if (found != metadata_.end()) return found->second;
    throw Error("'" + path_ + "' is no checkpoint of this program: it has no '" + key + "'");
  }

  int64_t count(const std::string& key) const {
    const std::string& digits = text(key);
    size_t used = 0;
    int64_t value = -1;
    try {
      value = std::stoll(digits, &used);
    } catch (const std::logic_error&) {
    }
    if (value >= 0 && used == digits.size()) return value;
    throw Error("'" + path_ + "': '" + key + "' is not a count: '" + digits + "'");
  }
  // 0 where the checkpoint has none, as older ones.
  int64_t count_if_any(const std::string& key) const {
    return metadata_.contains(key) ? count(key) : 0;
  }

  double number(const std::string& key) const { return parse(key, text(key)); }

  // Empty where the checkpoint has none, as older ones.
  OutlierWindow window_if_any(const std::string& key) const {
    OutlierWindow window;
    if (!metadata_.contains(key)) return window;
    std::istringstream words(text(key));
    for (std::string word; words >> word;) window.add(parse(key, word));
    return window;
  }

 private:
  double parse(const std::string& key, const std::string& word) const {
    char* end = nullptr;
    const double value = std::strtod(word.c_str(), &end);
    if (!word.empty() && *end == '\0') return value;
    throw Error("'" + path_ + "': '" + key + "' holds '" + word + "', not a number");
  }

  const std::map<std::string, std::string>& metadata_;
  std::string path_;
};

}  // namespace

std::map<std::string, std::string> checkpoint_metadata(
    const TrainingProgress& progress, const std::map<std::string, std::string>& provenance) {
  std::map<std::string, std::string> metadata = {
      {"step", std::to_string(progress.step)},
      {"tokens", std::to_string(progress.targets)},
      {"losses", exact(progress.losses)},
      {"gradient_norms", exact(progress.gradient_norms)},
      {"skipped_steps", std::to_string(progress.skipped_steps)},
      {"nonfinite_in_a_row", std::to_string(progress.nonfinite_in_a_row)},
      {"interval_steps", std::to_string(progress.interval_steps)},
      {"interval_loss", exact(progress.interval_loss)},
      {"interval_max_loss", exact(progress.interval_max_loss)},
      {"last_loss", exact(progress.last_loss)}};
  for (const auto& [key, value] : provenance) metadata[kProvenance + key] = value;
  return metadata;
}

TrainingProgress progress_of(const std::map<std::string, std::string>& metadata,
                             const std::map<std::string, std::string>& provenance,
                             const std::filesystem::path& path) {
  const Entries entries(metadata, path);
  for (const auto& [key, value] : provenance) {
    const std::string& saved = entries.text(kProvenance + key);
    if (saved == value) continue;
    throw Error("'" + path.string() + "' belongs to another run: its " + key + " is '" + saved +
                "', here it is '" + value + "'. Remove it or choose another folder");
  }
  TrainingProgress progress;
  progress.step = entries.count("step");
  progress.targets = entries.count("tokens");
  progress.losses = entries.window_if_any("losses");
  progress.gradient_norms = entries.window_if_any("gradient_norms");
  progress.skipped_steps = entries.count_if_any("skipped_steps");
  progress.nonfinite_in_a_row = entries.count_if_any("nonfinite_in_a_row");
  progress.interval_steps = entries.count("interval_steps");
  progress.interval_loss = entries.number("interval_loss");
  progress.interval_max_loss = entries.number("interval_max_loss");
  progress.last_loss = entries.number("last_loss");
  return progress;
}

}  // namespace smalltalk
