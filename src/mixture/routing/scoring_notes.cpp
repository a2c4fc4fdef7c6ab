#include "mixture/routing/scoring_notes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"

namespace smalltalk {

namespace {

constexpr double kSecondsBetweenWrites = 60;
constexpr size_t kHashSize = 16;

}  // namespace

// The file: a hash of what follows, a line that names the work, the numbers.
ScoringNotes::ScoringNotes(std::filesystem::path file, std::string work)
    : file_(std::move(file)), work_(std::move(work) + "\n"), last_write_(now_seconds()) {}

int64_t ScoringNotes::read(int64_t num_models, int64_t count, int64_t width,
                           std::span<double> scores) const {
  if (!std::filesystem::exists(file_)) return 0;
  const std::string text = read_text(file_);
  const auto body = std::string_view(text).substr(std::min(kHashSize, text.size()));
  if (!body.starts_with(work_) || hash_text(body) != text.substr(0, kHashSize)) return 0;
  const auto row_bytes = static_cast<size_t>(width) * sizeof(double);
  const size_t bytes = body.size() - work_.size();
  const auto done = static_cast<int64_t>(bytes / (row_bytes * static_cast<size_t>(num_models)));
  if (done > count || bytes % (row_bytes * static_cast<size_t>(num_models)) != 0) return 0;
  const size_t model_bytes = static_cast<size_t>(done) * row_bytes;
  for (int64_t model = 0; model < num_models; ++model) {
    std::memcpy(scores.data() + model * count * width,
                body.data() + work_.size() + static_cast<size_t>(model) * model_bytes, model_bytes);
  }
  return done;
}

void ScoringNotes::write(int64_t num_models, int64_t count, int64_t width, int64_t done,
                         std::span<const double> scores) {
  std::string body = work_;
  for (int64_t model = 0; model < num_models; ++model) {
    const auto rows = scores.subspan(static_cast<size_t>(model * count * width),
                                     static_cast<size_t>(done * width));
    body.append(reinterpret_cast<const char*>(rows.data()), rows.size_bytes());
  }
  write_text_atomically(file_, hash_text(body) + body);
  last_write_ = now_seconds();
}

bool ScoringNotes::due() const { return now_seconds() - last_write_ > kSecondsBetweenWrites; }

void ScoringNotes::remove() const { std::filesystem::remove(file_); }

}  // namespace smalltalk
