#include "hdf5_file.hpp"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <string_view>
#include <system_error>

#include "checksums.hpp"
#include "hdf5_impl.hpp"

namespace smalltalk {
namespace {

template <typename T>
hid_t hdf5_type() {
  if constexpr (std::is_same_v<T, uint16_t>) return H5T_STD_U16LE;
  if constexpr (std::is_same_v<T, uint32_t>) return H5T_STD_U32LE;
  if constexpr (std::is_same_v<T, uint64_t>) return H5T_STD_U64LE;
  if constexpr (std::is_same_v<T, float>) return H5T_IEEE_F32LE;
  if constexpr (std::is_same_v<T, double>) return H5T_IEEE_F64LE;
}

// The extents of an open dataset do not overflow: see require_stored().
template <typename Iterator>
int64_t product(Iterator begin, Iterator end) {
  return std::accumulate(begin, end, int64_t{1},
                         [](int64_t a, auto b) { return a * static_cast<int64_t>(b); });
}

}  // namespace

// HDF5 hands on what the system said in a text only: "file write failed: ..., errno = 28, ...".
std::string system_reason() {
  std::string reason;
  const auto look = [](unsigned, const H5E_error2_t* entry, void* out) -> herr_t {
    static constexpr std::string_view kMark = "errno = ";
    const std::string_view text = entry->desc == nullptr ? "" : entry->desc;
    const size_t at = text.find(kMark);
    if (at == std::string_view::npos) return 0;
    const int error = std::atoi(text.data() + at + kMark.size());
    *static_cast<std::string*>(out) = ": " + std::generic_category().message(error);
    return 1;  // the innermost one is the cause
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, look, &reason);
  return reason;
}

Hdf5Handle Hdf5File::Impl::open_dataset(const std::string& name) const {
  silence_hdf5();
  Hdf5Handle dataset = own(H5Dopen2(file.get(), name.c_str(), H5P_DEFAULT), H5Dclose,
                           "has no dataset /" + name + ", or it is damaged; make it again");
  if (!created) require_stored(dataset, name);
  return dataset;
}

void Hdf5File::Impl::require_stored(const Hdf5Handle& dataset, const std::string& name) const {
  constexpr uint64_t kBestCompression = 1032;  // of deflate
  uint64_t claimed = H5Tget_size(type_of(dataset).get());
  bool fits = true;
  for (const hsize_t extent : shape_of(dataset)) {
    fits = fits && !__builtin_mul_overflow(claimed, extent, &claimed);
  }
  hsize_t in_file = 0;
  H5Fget_filesize(file.get(), &in_file);
  const hsize_t stored = std::min<hsize_t>(H5Dget_storage_size(dataset.get()), in_file);
  check(fits && claimed / kBestCompression <= stored,
        "/" + name + " claims to hold more than the file does; make it again");
}

std::vector<hsize_t> Hdf5File::Impl::shape_of(const Hdf5Handle& dataset) const {
  Hdf5Handle space =
      own(H5Dget_space(dataset.get()), H5Sclose, "the shape of a dataset cannot be read");
  const int rank = H5Sget_simple_extent_ndims(space.get());
  check(rank >= 0, "the shape of a dataset cannot be read");
  std::vector<hsize_t> shape(static_cast<size_t>(rank));
  if (rank > 0) H5Sget_simple_extent_dims(space.get(), shape.data(), nullptr);
  return shape;
}

Hdf5Handle Hdf5File::Impl::type_of(const Hdf5Handle& dataset) const {
  return own(H5Dget_type(dataset.get()), H5Tclose, "the type of a dataset cannot be read");
}

Hdf5Handle Hdf5File::Impl::make_dataset(const std::string& name, hid_t type,
                                        const std::vector<hsize_t>& shape) {
  Hdf5Handle space = own(H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr),
                         H5Sclose, "shape");
  Hdf5Handle creation = own(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "HDF5 gave no property list");
  H5Pset_layout(creation.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(creation.get(), false);
  return own(H5Dcreate2(file.get(), name.c_str(), type, space.get(), H5P_DEFAULT, creation.get(),
                        H5P_DEFAULT),
             H5Dclose, "/" + name + " cannot be created");
}

void Hdf5File::Impl::read_rows(const Hdf5Handle& dataset, const std::string& name, hid_t type,
                               hsize_t first, hsize_t count, void* out) const {
  std::vector<hsize_t> extent = shape_of(dataset);
  std::vector<hsize_t> start(extent.size(), 0);
  start[0] = first;
  extent[0] = count;
  Hdf5Handle place = own(H5Dget_space(dataset.get()), H5Sclose, "shape of /" + name);
  Hdf5Handle memory = own(H5Screate_simple(static_cast<int>(extent.size()), extent.data(), nullptr),
                          H5Sclose, "shape");
  check(H5Sselect_hyperslab(place.get(), H5S_SELECT_SET, start.data(), nullptr, extent.data(),
                            nullptr) >= 0 &&
            H5Dread(dataset.get(), type, memory.get(), place.get(), H5P_DEFAULT, out) >= 0,
        "/" + name + " cannot be read (truncated?)");
}

void Hdf5File::Impl::write_checksums(const std::string& name, std::span<const uint64_t> checksums) {
  const std::string companion = checksums_of(name);
  Hdf5Handle dataset = make_dataset(companion, H5T_STD_U64LE, {checksums.size()});
  check(checksums.empty() || H5Dwrite(dataset.get(), H5T_STD_U64LE, H5S_ALL, H5S_ALL, H5P_DEFAULT,
                                      checksums.data()) >= 0,
        "/" + companion + " cannot be written");
  close_dataset(std::move(dataset), companion);
}

Hdf5File::Hdf5File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Hdf5File::~Hdf5File() = default;
Hdf5File::Hdf5File(Hdf5File&&) noexcept = default;

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  silence_hdf5();
  auto impl = std::make_unique<Impl>();
  impl->shown = path;
  std::error_code error;
  if (!std::filesystem::exists(path, error)) impl->fail("no such file");
  Hdf5Handle access = impl->own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "HDF5 gave no property list");
  H5Pset_file_locking(access.get(), false, true);
  impl->file = Hdf5Handle(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()), H5Fclose);
  if (!impl->file.valid()) {
    const bool is_hdf5 = H5Fis_hdf5(path.c_str()) > 0;
    impl->fail(is_hdf5 ? "cannot be opened; truncated, or damaged? Make it again"
                       : "not an HDF5 file, or not readable");
  }
  return Hdf5File(std::move(impl));
}

Hdf5File Hdf5File::create(const std::filesystem::path& path, const std::filesystem::path& shown) {
  silence_hdf5();
  auto impl = std::make_unique<Impl>();
  impl->shown = shown;
  impl->created = true;
  Hdf5Handle access = impl->own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "HDF5 gave no property list");
  H5Pset_file_locking(access.get(), false, true);
  // The 1.8 layout holds attributes of more than 64 KiB (lists of many domains), and checksums of
  // all metadata.
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18);
  H5Pset_alignment(access.get(), 1, 8);  // datasets are mapped into memory
  Hdf5Handle creation =
      impl->own(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "HDF5 gave no property list");
  H5Pset_obj_track_times(creation.get(), false);  // equal content is to give equal bytes
  impl->file = impl->own(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()),
                         H5Fclose, "cannot be created");
  return Hdf5File(std::move(impl));
}

const std::filesystem::path& Hdf5File::path() const { return impl_->shown; }

bool Hdf5File::has_dataset(const std::string& name) const {
  silence_hdf5();
  const htri_t found = H5Lexists(impl_->file.get(), name.c_str(), H5P_DEFAULT);
  impl_->check(found >= 0, "its list of datasets is damaged; make it again");
  return found > 0;
}

std::vector<int64_t> Hdf5File::shape(const std::string& name) const {
  const std::vector<hsize_t> shape = impl_->shape_of(impl_->open_dataset(name));
  return {shape.begin(), shape.end()};
}

int64_t Hdf5File::element_bytes(const std::string& name) const {
  return static_cast<int64_t>(H5Tget_size(impl_->type_of(impl_->open_dataset(name)).get()));
}

template <typename T>
bool Hdf5File::has_type(const std::string& name) const {
  return H5Tequal(impl_->type_of(impl_->open_dataset(name)).get(), hdf5_type<T>()) > 0;
}

int64_t Hdf5File::contiguous_offset(const std::string& name) const {
  const haddr_t offset = H5Dget_offset(impl_->open_dataset(name).get());
  return offset == HADDR_UNDEF ? -1 : static_cast<int64_t>(offset);
}

template <typename T>
std::vector<T> Hdf5File::read(const std::string& name) const {
  const std::vector<int64_t> extent = shape(name);
  std::vector<T> values(static_cast<size_t>(product(extent.begin(), extent.end())));
  read_into<T>(name, values);
  return values;
}

template <typename T>
void Hdf5File::read_into(const std::string& name, std::span<T> out) const {
  const std::vector<int64_t> extent = shape(name);
  impl_->check(static_cast<int64_t>(out.size()) == product(extent.begin(), extent.end()),
               "/" + name + " has an unexpected size");
  if (extent.empty()) impl_->fail("/" + name + " is a single value, not an array");
  read_slice<T>(name, 0, out);
}

template <typename T>
void Hdf5File::read_slice(const std::string& name, int64_t first, std::span<T> out) const {
  impl_->check(has_type<T>(name), "/" + name + " has an unexpected type");
  if (out.empty()) return;
  const Hdf5Handle dataset = impl_->open_dataset(name);
  const std::vector<hsize_t> shape = impl_->shape_of(dataset);
  impl_->check(!shape.empty(), "/" + name + " is a single value, not an array");
  const int64_t row = product(shape.begin() + 1, shape.end());
  const auto size = static_cast<int64_t>(out.size());
  const auto extent = static_cast<int64_t>(shape[0]);
  impl_->check(row > 0 && size % row == 0 && first >= 0 && size / row <= extent &&
                   first <= extent - size / row,
               "/" + name + " does not hold the rows that are asked for");
  impl_->read_rows(dataset, name, hdf5_type<T>(), static_cast<hsize_t>(first),
                   static_cast<hsize_t>(size / row), out.data());
  verify<T>(name, first * row, out);
}

// Pieces that are only partly in `out` are read once more, whole; what of them is in `out` is then
// taken from there, so that only verified values are handed on.
template <typename T>
void Hdf5File::verify(const std::string& name, int64_t first_element, std::span<T> out) const {
  constexpr int64_t kPiece = kPieceBytes / static_cast<int64_t>(sizeof(T));  // elements
  const Hdf5Handle dataset = impl_->open_dataset(name);
  const std::vector<hsize_t> shape = impl_->shape_of(dataset);
  const int64_t row = product(shape.begin() + 1, shape.end());
  const int64_t total = row * static_cast<int64_t>(shape[0]);
  const int64_t last_element = first_element + static_cast<int64_t>(out.size());
  const int64_t first_piece = first_element / kPiece;
  const std::vector<uint64_t> expected =
      impl_->read_checksums(name, total * static_cast<int64_t>(sizeof(T)), first_piece,
                            (last_element + kPiece - 1) / kPiece - first_piece);
  std::vector<T> rows;
  for (size_t i = 0; i < expected.size(); ++i) {
    const int64_t begin = (first_piece + static_cast<int64_t>(i)) * kPiece;
    const int64_t end = std::min(begin + kPiece, total);
    std::span<const T> piece;
    if (begin >= first_element && end <= last_element) {
      piece =
          out.subspan(static_cast<size_t>(begin - first_element), static_cast<size_t>(end - begin));
    } else {
      const int64_t first_row = begin / row;
      const int64_t num_rows = (end + row - 1) / row - first_row;
      rows.resize(static_cast<size_t>(num_rows * row));
      impl_->read_rows(dataset, name, hdf5_type<T>(), static_cast<hsize_t>(first_row),
                       static_cast<hsize_t>(num_rows), rows.data());
      piece = std::span<const T>(rows).subspan(static_cast<size_t>(begin - first_row * row),
                                               static_cast<size_t>(end - begin));
      const int64_t from = std::max(begin, first_element);
      const int64_t until = std::min(end, last_element);
      std::copy_n(piece.begin() + (from - begin), until - from,
                  out.begin() + (from - first_element));
    }
    if (piece_hash(std::as_bytes(piece)) != expected[i]) impl_->fail(damage_near(name, begin));
  }
}

template <typename T>
void Hdf5File::write(const std::string& name, std::span<const T> values,
                     std::vector<int64_t> shape) {
  if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
  ST_CHECK(product(shape.begin(), shape.end()) == static_cast<int64_t>(values.size()));
  Hdf5Handle dataset = impl_->make_dataset(name, hdf5_type<T>(), {shape.begin(), shape.end()});
  impl_->check(values.empty() || H5Dwrite(dataset.get(), hdf5_type<T>(), H5S_ALL, H5S_ALL,
                                          H5P_DEFAULT, values.data()) >= 0,
               "/" + name + " cannot be written");
  impl_->close_dataset(std::move(dataset), name);
  impl_->write_checksums(name, hash_pieces(std::as_bytes(values)));
}

template <typename T>
void Hdf5File::create_dataset(const std::string& name, int64_t size) {
  impl_->close_dataset(impl_->make_dataset(name, hdf5_type<T>(), {static_cast<hsize_t>(size)}),
                       name);
  impl_->unsealed.push_back(name);
}

template <typename T>
void Hdf5File::write_at(const std::string& name, int64_t first, std::span<const T> values) {
  if (values.empty()) return;
  Hdf5Handle dataset = impl_->open_dataset(name);
  const hsize_t start = static_cast<hsize_t>(first);
  const hsize_t count = values.size();
  Hdf5Handle place = impl_->own(H5Dget_space(dataset.get()), H5Sclose, "shape of /" + name);
  Hdf5Handle memory = impl_->own(H5Screate_simple(1, &count, nullptr), H5Sclose, "shape");
  impl_->check(
      H5Sselect_hyperslab(place.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr) >= 0 &&
          H5Dwrite(dataset.get(), hdf5_type<T>(), memory.get(), place.get(), H5P_DEFAULT,
                   values.data()) >= 0,
      "/" + name + " cannot be written");
  impl_->close_dataset(std::move(dataset), name);
}

#define ST_HDF5_INSTANTIATE(T)                                                                    \
  template bool Hdf5File::has_type<T>(const std::string&) const;                                  \
  template std::vector<T> Hdf5File::read<T>(const std::string&) const;                            \
  template void Hdf5File::read_into<T>(const std::string&, std::span<T>) const;                   \
  template void Hdf5File::read_slice<T>(const std::string&, int64_t, std::span<T>) const;         \
  template void Hdf5File::write<T>(const std::string&, std::span<const T>, std::vector<int64_t>); \
  template void Hdf5File::create_dataset<T>(const std::string&, int64_t);                         \
  template void Hdf5File::write_at<T>(const std::string&, int64_t, std::span<const T>);
ST_HDF5_INSTANTIATE(uint16_t)
ST_HDF5_INSTANTIATE(uint32_t)
ST_HDF5_INSTANTIATE(uint64_t)
ST_HDF5_INSTANTIATE(float)
ST_HDF5_INSTANTIATE(double)
#undef ST_HDF5_INSTANTIATE

}  // namespace smalltalk
