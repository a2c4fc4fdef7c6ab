#include "smalltalk/data/score_file.hpp"

#include <fmt/format.h>

#include <deque>
#include <limits>
#include <optional>

#include "mapped_dataset.hpp"
#include "provenance.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/provenance.hpp"

namespace smalltalk {
namespace {

constexpr const char* kScores = "scores";

// [N, E] of a file that holds scores.
std::vector<int64_t> score_shape(const Hdf5File& file) {
  // Scores may come from any program that writes such a dataset; only a stated format is checked.
  if (file.has_attribute("format") || !file.has_dataset(kScores)) file.require_format(kScoreFormat);
  std::vector<int64_t> shape = file.shape(kScores);
  if (shape.size() != 2 || !file.has_type<float>(kScores) || shape[1] < 1 ||
      shape[1] > std::numeric_limits<uint16_t>::max()) {
    throw Error(file.path().string() +
                ": /scores must be of type float32 and two-dimensional, [N, E], with 1 <= E <= "
                "65535");
  }
  return shape;
}

}  // namespace

void write_scores(const std::filesystem::path& path, const ScoreMatrix& scores,
                  const Provenance& provenance) {
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    Hdf5File file = Hdf5File::create(temporary, path);
    file.write_format(kScoreFormat);
    write_provenance(file, provenance);
    file.write<float>(kScores, scores.values(), {scores.num_sequences(), scores.num_experts()});
    file.close();
  });
}

ScoreMatrix read_scores(const std::filesystem::path& path, Provenance* provenance) {
  const Hdf5File file = Hdf5File::open(path);
  const std::vector<int64_t> shape = score_shape(file);
  ScoreMatrix scores(shape[0], shape[1]);
  file.read_into<float>(kScores, scores.values());
  if (provenance != nullptr) *provenance = file.text_attributes();
  return scores;
}

struct ScoreFile::Impl {
  explicit Impl(const std::filesystem::path& path)
      : file(Hdf5File::open(path)), shape(score_shape(file)), provenance(file.text_attributes()) {
    const int64_t offset = file.contiguous_offset(kScores);
    if (offset >= 0 && offset % static_cast<int64_t>(sizeof(float)) == 0) {
      mapped.emplace(file, kScores);
    }
  }
  Hdf5File file;
  std::vector<int64_t> shape;  // N, E
  Provenance provenance;
  std::optional<MappedDataset> mapped;
  std::deque<std::vector<float>> copies;  // of rows that cannot be mapped
};

ScoreFile::ScoreFile(const std::filesystem::path& path) : impl_(std::make_unique<Impl>(path)) {}
ScoreFile::~ScoreFile() = default;
ScoreFile::ScoreFile(ScoreFile&&) noexcept = default;

int64_t ScoreFile::num_sequences() const { return impl_->shape[0]; }
int64_t ScoreFile::num_experts() const { return impl_->shape[1]; }
const Provenance& ScoreFile::provenance() const { return impl_->provenance; }

LocalScores<float> ScoreFile::rows(int64_t first, int64_t count) const {
  if (first < 0 || count < 0 || first > num_sequences() - count) {
    throw Error(fmt::format("{}: rows {} to {} asked for, of {}", impl_->file.path().string(),
                            first, first + count, num_sequences()));
  }
  LocalScores<float> scores;
  scores.num_experts = num_experts();
  std::span<const float> values;
  if (impl_->mapped) {
    values = impl_->mapped->values<float>(first * num_experts(), count * num_experts());
  } else {
    auto& copy = impl_->copies.emplace_back(static_cast<size_t>(count * num_experts()));
    impl_->file.read_slice<float>(kScores, first, copy);
    values = copy;
  }
  scores.blocks.push_back({static_cast<uint64_t>(first), values});
  return scores;
}

}  // namespace smalltalk
