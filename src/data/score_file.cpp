#include "smalltalk/data/score_file.hpp"

#include "provenance.hpp"
#include "smalltalk/core/run_folder.hpp"

namespace smalltalk {

void write_scores(const std::filesystem::path& path, const ScoreMatrix& scores,
                  const Provenance& provenance) {
  write_atomically(path, [&](const std::filesystem::path& temporary) {
    Hdf5File file = Hdf5File::create(temporary, path);
    file.write_format(kScoreFormat);
    write_provenance(file, provenance);
    file.write<float>("scores", scores.values(), {scores.num_sequences(), scores.num_experts()});
    file.close();
  });
}

ScoreMatrix read_scores(const std::filesystem::path& path, Provenance* provenance) {
  const Hdf5File file = Hdf5File::open(path);
  // Scores may come from any program that writes such a dataset; only a stated format is checked.
  if (file.has_attribute("format") || !file.has_dataset("scores")) {
    file.require_format(kScoreFormat);
  }
  const std::vector<int64_t> shape = file.shape("scores");
  if (shape.size() != 2) throw Error(path.string() + ": /scores must be two-dimensional [N, E]");
  ScoreMatrix scores(shape[0], shape[1]);
  file.read_into<float>("scores", scores.values());
  if (provenance != nullptr) *provenance = file.text_attributes();
  return scores;
}

}  // namespace smalltalk
