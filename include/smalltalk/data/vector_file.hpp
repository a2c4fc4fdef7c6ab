// Vectors of documents, made by any program: HDF5 with a dataset /vectors float32 [documents, d].
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace smalltalk {

struct VectorFileInfo {
  int64_t num_vectors = 0;
  int64_t dimensions = 0;
};
// Error: missing, not HDF5, no such dataset.
VectorFileInfo read_vector_info(const std::filesystem::path& path);

// Vectors [first, first + count), one behind the other. REQUIRES them to exist. Error: damaged, or
// a value that is not finite.
std::vector<float> read_vectors(const std::filesystem::path& path, int64_t first, int64_t count);

}  // namespace smalltalk
