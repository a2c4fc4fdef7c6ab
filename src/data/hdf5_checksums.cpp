// Checksums of datasets: what is written when a file is closed, and what readers compare with.
#include <algorithm>

#include "checksums.hpp"
#include "hdf5_impl.hpp"

namespace smalltalk {

std::vector<uint64_t> Hdf5File::Impl::read_checksums(const std::string& name, int64_t bytes,
                                                     int64_t first, int64_t count) const {
  const std::string companion = checksums_of(name);
  const htri_t found = H5Lexists(file.get(), companion.c_str(), H5P_DEFAULT);
  if (found == 0 && H5Aexists(file.get(), "format") == 0) return {};  // of another program
  check(found > 0, "/" + name + " has no checksums, or they are damaged; make it again");
  const Hdf5Handle dataset = open_dataset(companion);
  const std::vector<hsize_t> shape = shape_of(dataset);
  check(H5Tequal(type_of(dataset).get(), H5T_STD_U64LE) > 0 && shape.size() == 1 &&
            static_cast<int64_t>(shape[0]) == num_pieces(bytes),
        "/" + companion + " does not fit /" + name + "; make it again");
  std::vector<uint64_t> checksums(static_cast<size_t>(count));
  if (count > 0) {
    read_rows(dataset, companion, H5T_STD_U64LE, static_cast<hsize_t>(first),
              static_cast<hsize_t>(count), checksums.data());
  }
  return checksums;
}

std::vector<uint64_t> Hdf5File::checksums(const std::string& name) const {
  int64_t bytes = element_bytes(name);
  for (const int64_t extent : shape(name)) bytes *= extent;
  return impl_->read_checksums(name, bytes, 0, num_pieces(bytes));
}

std::vector<uint64_t> Hdf5File::seal(const std::string& name) {
  const auto place = std::find(impl_->unsealed.begin(), impl_->unsealed.end(), name);
  ST_CHECK(place != impl_->unsealed.end());
  impl_->unsealed.erase(place);
  const Hdf5Handle dataset = impl_->open_dataset(name);
  const Hdf5Handle type = impl_->type_of(dataset);
  const hsize_t size = impl_->shape_of(dataset).at(0);
  const size_t element = H5Tget_size(type.get());
  std::vector<std::byte> piece(kPieceBytes);
  std::vector<uint64_t> checksums;
  for (hsize_t first = 0; first < size; first += kPieceBytes / element) {
    const hsize_t count = std::min<hsize_t>(kPieceBytes / element, size - first);
    impl_->read_rows(dataset, name, type.get(), first, count, piece.data());
    checksums.push_back(piece_hash(std::span(piece).first(count * element)));
  }
  impl_->write_checksums(name, checksums);
  return checksums;
}

void Hdf5File::close() {
  if (impl_->created) {
    while (!impl_->unsealed.empty()) seal(std::string(impl_->unsealed.front()));
    impl_->check(H5Fflush(impl_->file.get(), H5F_SCOPE_GLOBAL) >= 0, "cannot be written");
  }
  impl_->check(impl_->file.close(), "cannot be written");
}

}  // namespace smalltalk
