#include "smalltalk/data/score_file.hpp"

#include <hdf5.h>

#include <numeric>

#include "data/hdf5_file.hpp"
#include "files.hpp"
#include "smalltalk/core/system/files.hpp"

namespace smalltalk {
namespace {

using namespace test;

ScoreMatrix some_scores(int64_t num_sequences, int64_t num_experts) {
  ScoreMatrix scores(num_sequences, num_experts);
  std::iota(scores.values().begin(), scores.values().end(), -1e6f);
  return scores;
}

// As another program would: no attributes, no checksums, perhaps in chunks.
void write_foreign(const std::filesystem::path& path, const ScoreMatrix& scores, bool in_chunks) {
  const hsize_t shape[2] = {static_cast<hsize_t>(scores.num_sequences()),
                            static_cast<hsize_t>(scores.num_experts())};
  const hsize_t chunk[2] = {40, 1};
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t space = H5Screate_simple(2, shape, nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  if (in_chunks) H5Pset_chunk(creation, 2, chunk);
  const hid_t dataset =
      H5Dcreate2(file, "scores", H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT);
  H5Dwrite(dataset, H5T_IEEE_F32LE, H5S_ALL, H5S_ALL, H5P_DEFAULT, scores.values().data());
  H5Dclose(dataset);
  H5Pclose(creation);
  H5Sclose(space);
  H5Fclose(file);
}

void expect_equal_rows(const ScoreFile& file, const ScoreMatrix& scores) {
  EXPECT_EQ(file.num_sequences(), scores.num_sequences());
  EXPECT_EQ(file.num_experts(), scores.num_experts());
  const int64_t n = scores.num_sequences();
  for (const auto& [first, count] :
       {std::pair<int64_t, int64_t>{0, n}, {0, 1}, {n / 3, n / 3}, {n - 1, 1}, {n, 0}}) {
    const LocalScores<float> rows = file.rows(first, count);
    ASSERT_EQ(rows.blocks.size(), 1u);
    EXPECT_EQ(rows.num_rows(), count);
    EXPECT_EQ(rows.blocks[0].first_sequence, static_cast<uint64_t>(first));
    EXPECT_TRUE(std::equal(rows.blocks[0].values.begin(), rows.blocks[0].values.end(),
                           scores.values().begin() + first * scores.num_experts()));
  }
}

TEST(ScoreFile, RoundTrip) {
  const TemporaryFolder folder;
  const ScoreMatrix scores = some_scores(5, 3);
  write_scores(folder / "scores.h5", scores, {{"routers", "abc"}});
  Provenance provenance;
  const ScoreMatrix read = read_scores(folder / "scores.h5", &provenance);
  EXPECT_EQ(read.num_sequences(), 5);
  EXPECT_EQ(read.num_experts(), 3);
  EXPECT_TRUE(std::equal(read.values().begin(), read.values().end(), scores.values().begin()));
  EXPECT_EQ(provenance, (Provenance{{"routers", "abc"}}));
  EXPECT_EQ(ScoreFile(folder / "scores.h5").provenance(), provenance);
}

TEST(ScoreFile, RowsOfOursAndOfOtherPrograms) {
  const TemporaryFolder folder;
  for (const auto& scores : {some_scores(200'000, 3), some_scores(50, 1), some_scores(3, 65535)}) {
    write_scores(folder / "ours.h5", scores, {});
    expect_equal_rows(ScoreFile(folder / "ours.h5"), scores);
    for (const bool in_chunks : {false, true}) {
      if (in_chunks && scores.num_experts() == 65535) continue;
      write_foreign(folder / "other.h5", scores, in_chunks);
      expect_equal_rows(ScoreFile(folder / "other.h5"), scores);
      const ScoreMatrix whole = read_scores(folder / "other.h5");
      EXPECT_TRUE(
          std::equal(whole.values().begin(), whole.values().end(), scores.values().begin()));
    }
  }
  write_scores(folder / "none.h5", ScoreMatrix(0, 2), {});
  EXPECT_EQ(ScoreFile(folder / "none.h5").rows(0, 0).num_rows(), 0);
}

TEST(ScoreFile, TouchesTheAskedRowsOnly) {
  const TemporaryFolder folder;
  const ScoreMatrix scores = some_scores(200'000, 3);  // 2.3 MiB
  write_scores(folder / "a.h5", scores, {});
  const int64_t offset = Hdf5File::open(folder / "a.h5").contiguous_offset("scores");
  std::string bytes = read_text(folder / "a.h5");
  bytes[static_cast<size_t>(offset)] ^= 1;
  write_bytes(folder / "a.h5", bytes);
  const ScoreFile file(folder / "a.h5");
  EXPECT_EQ(file.rows(100'000, 100'000).num_rows(), 100'000);
  for (int i = 0; i < 2; ++i) {
    EXPECT_TRUE(mentions(complaint_of([&] { file.rows(80'000, 1); }),
                         "a.h5: /scores is damaged near element 0"));
  }
}

// HDF5 makes up what is not stored: 2 KiB can claim to hold 16 TiB.
TEST(ScoreFile, RefusesScoresThatAreNotStored) {
  const TemporaryFolder folder;
  const hsize_t shape[2] = {hsize_t{1} << 40, 4};
  const hsize_t chunk[2] = {1024, 4};
  const hid_t file = H5Fcreate((folder / "a.h5").c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  const hid_t space = H5Screate_simple(2, shape, nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(creation, 2, chunk);
  H5Dclose(H5Dcreate2(file, "scores", H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT));
  H5Pclose(creation);
  H5Sclose(space);
  H5Fclose(file);
  EXPECT_TRUE(
      mentions(complaint_of([&] { read_scores(folder / "a.h5"); }), "a.h5: /scores claims"));
  EXPECT_TRUE(mentions(complaint_of([&] { ScoreFile scores(folder / "a.h5"); }), "claims"));
  EXPECT_TRUE(mentions(complaint_of([&] { describe_hdf5(folder / "a.h5"); }), "claims"));
}

TEST(ScoreFile, RefusesRowsThatItDoesNotHave) {
  const TemporaryFolder folder;
  write_scores(folder / "a.h5", some_scores(5, 3), {});
  const ScoreFile file(folder / "a.h5");
  for (const auto& [first, count] : {std::pair{-1, 1}, {0, 6}, {5, 1}, {1, -1}}) {
    EXPECT_TRUE(mentions(complaint_of([&] { file.rows(first, count); }), "a.h5"));
  }
}

TEST(ScoreFile, RefusesOtherShapesAndTypes) {
  const TemporaryFolder folder;
  const auto refuse = [&](auto write, const std::string& reason) {
    Hdf5File file = Hdf5File::create(folder / "a.h5", folder / "a.h5");
    write(file);
    file.close();
    EXPECT_TRUE(mentions(complaint_of([&] { read_scores(folder / "a.h5"); }), reason));
    EXPECT_TRUE(mentions(complaint_of([&] { ScoreFile scores(folder / "a.h5"); }), reason));
  };
  const std::vector<float> values = {1, 2, 3, 4};
  refuse([&](Hdf5File& file) { file.write<float>("scores", values); }, "[N, E]");
  refuse([&](Hdf5File& file) { file.write<float>("scores", {}, {4, 0}); }, "[N, E]");
  refuse([&](Hdf5File& file) { file.write<float>("other", values); }, "not a file of this suite");
  refuse(
      [&](Hdf5File& file) {
        file.write<uint32_t>("scores", std::vector<uint32_t>{1, 2}, {1, 2});
      },
      "float32");
  refuse(
      [&](Hdf5File& file) {
        file.write_format("smalltalk shards");
        file.write<float>("scores", values, {2, 2});
      },
      "smalltalk shards");
}

}  // namespace
}  // namespace smalltalk
