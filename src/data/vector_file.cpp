#include "smalltalk/data/vector_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "hdf5_file.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

constexpr const char* kVectors = "vectors";

VectorFileInfo info_of(const Hdf5File& file) {
  const std::string wanted = ": it needs a dataset /vectors of type float32, [documents, d]";
  if (!file.has_dataset(kVectors)) throw Error(file.path().string() + wanted);
  const std::vector<int64_t> shape = file.shape(kVectors);
  if (shape.size() != 2 || shape[1] < 1 || !file.has_type<float>(kVectors)) {
    throw Error(file.path().string() + wanted);
  }
  return {shape[0], shape[1]};
}

}  // namespace

VectorFileInfo read_vector_info(const std::filesystem::path& path) {
  return info_of(Hdf5File::open(path));
}

std::vector<float> read_vectors(const std::filesystem::path& path, int64_t first, int64_t count) {
  const Hdf5File file = Hdf5File::open(path);
  const int64_t dimensions = info_of(file).dimensions;
  std::vector<float> values(static_cast<size_t>(count * dimensions));
  if (values.empty()) return values;
  file.read_slice<float>(kVectors, first, values);
  const auto bad =
      std::ranges::find_if_not(values, [](float value) { return std::isfinite(value); });
  if (bad != values.end()) {
    throw Error(fmt::format("{}: vector {} is not finite", path.string(),
                            first + (bad - values.begin()) / dimensions));
  }
  return values;
}

}  // namespace smalltalk
