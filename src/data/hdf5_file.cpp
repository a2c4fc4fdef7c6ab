#include "hdf5_file.hpp"

#include <functional>
#include <numeric>

#include "hdf5_impl.hpp"

namespace smalltalk {
namespace {

template <typename T>
hid_t hdf5_type() {
  if constexpr (std::is_same_v<T, uint16_t>) return H5T_STD_U16LE;
  if constexpr (std::is_same_v<T, uint32_t>) return H5T_STD_U32LE;
  if constexpr (std::is_same_v<T, uint64_t>) return H5T_STD_U64LE;
  if constexpr (std::is_same_v<T, float>) return H5T_IEEE_F32LE;
}

// The library prints every failure by itself unless told not to; the setting is per thread.
void silence_hdf5() { H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr); }

template <typename Impl>
Hdf5Handle open_dataset(const Impl& impl, const std::string& name) {
  silence_hdf5();
  return impl.own(H5Dopen2(impl.file.get(), name.c_str(), H5P_DEFAULT), H5Dclose,
                  "has no dataset /" + name);
}

template <typename Impl>
std::vector<hsize_t> dataset_shape(const Impl& impl, const Hdf5Handle& dataset) {
  Hdf5Handle space =
      impl.own(H5Dget_space(dataset.get()), H5Sclose, "the shape of a dataset cannot be read");
  const int rank = H5Sget_simple_extent_ndims(space.get());
  impl.check(rank >= 0, "the shape of a dataset cannot be read");
  std::vector<hsize_t> shape(static_cast<size_t>(rank));
  if (rank > 0) H5Sget_simple_extent_dims(space.get(), shape.data(), nullptr);
  return shape;
}

}  // namespace

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
  Hdf5Handle access = impl->own(H5Pcreate(H5P_FILE_ACCESS), H5Pclose, "HDF5 gave no property list");
  H5Pset_file_locking(access.get(), false, true);
  // The 1.8 layout holds attributes of more than 64 KiB: lists of many domains.
  H5Pset_libver_bounds(access.get(), H5F_LIBVER_V18, H5F_LIBVER_V18);
  H5Pset_alignment(access.get(), 1, 8);  // datasets are mapped into memory
  Hdf5Handle creation =
      impl->own(H5Pcreate(H5P_FILE_CREATE), H5Pclose, "HDF5 gave no property list");
  H5Pset_obj_track_times(creation.get(), false);  // equal content is to give equal bytes
  impl->file = impl->own(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()),
                         H5Fclose, "cannot be created");
  return Hdf5File(std::move(impl));
}

void Hdf5File::close() {
  impl_->check(H5Fflush(impl_->file.get(), H5F_SCOPE_GLOBAL) >= 0 && impl_->file.close(),
               "cannot be written (disk full?)");
}

bool Hdf5File::has_dataset(const std::string& name) const {
  silence_hdf5();
  return H5Lexists(impl_->file.get(), name.c_str(), H5P_DEFAULT) > 0;
}

std::vector<int64_t> Hdf5File::shape(const std::string& name) const {
  const std::vector<hsize_t> shape = dataset_shape(*impl_, open_dataset(*impl_, name));
  return {shape.begin(), shape.end()};
}

int64_t Hdf5File::element_bytes(const std::string& name) const {
  Hdf5Handle dataset = open_dataset(*impl_, name);
  Hdf5Handle type = impl_->own(H5Dget_type(dataset.get()), H5Tclose, "type of /" + name);
  return static_cast<int64_t>(H5Tget_size(type.get()));
}

int64_t Hdf5File::contiguous_offset(const std::string& name) const {
  const haddr_t offset = H5Dget_offset(open_dataset(*impl_, name).get());
  impl_->check(offset != HADDR_UNDEF, "/" + name + " is not laid out contiguously");
  return static_cast<int64_t>(offset);
}

template <typename T>
std::vector<T> Hdf5File::read(const std::string& name) const {
  const std::vector<int64_t> extent = shape(name);
  std::vector<T> values(static_cast<size_t>(
      std::accumulate(extent.begin(), extent.end(), int64_t{1}, std::multiplies<>())));
  read_into<T>(name, values);
  return values;
}

template <typename T>
void Hdf5File::read_into(const std::string& name, std::span<T> out) const {
  Hdf5Handle dataset = open_dataset(*impl_, name);
  size_t size = 1;
  for (hsize_t extent : dataset_shape(*impl_, dataset)) size *= extent;
  impl_->check(size == out.size(), "/" + name + " has an unexpected size");
  if (out.empty()) return;
  // Only the very type is taken: HDF5 would convert, and clip, silently.
  Hdf5Handle type = impl_->own(H5Dget_type(dataset.get()), H5Tclose, "type of /" + name);
  impl_->check(H5Tequal(type.get(), hdf5_type<T>()) > 0, "/" + name + " has an unexpected type");
  impl_->check(
      H5Dread(dataset.get(), hdf5_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, out.data()) >= 0,
      "/" + name + " cannot be read (truncated?)");
}

namespace {

template <typename T, typename Impl>
Hdf5Handle make_dataset(const Impl& impl, const std::string& name,
                        const std::vector<hsize_t>& shape) {
  Hdf5Handle space = impl.own(
      H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr), H5Sclose, "shape");
  Hdf5Handle creation =
      impl.own(H5Pcreate(H5P_DATASET_CREATE), H5Pclose, "HDF5 gave no property list");
  H5Pset_layout(creation.get(), H5D_CONTIGUOUS);
  H5Pset_alloc_time(creation.get(), H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER);
  H5Pset_obj_track_times(creation.get(), false);
  return impl.own(H5Dcreate2(impl.file.get(), name.c_str(), hdf5_type<T>(), space.get(),
                             H5P_DEFAULT, creation.get(), H5P_DEFAULT),
                  H5Dclose, "/" + name + " cannot be created (disk full?)");
}

}  // namespace

template <typename T>
void Hdf5File::write(const std::string& name, std::span<const T> values,
                     std::vector<int64_t> shape) {
  if (shape.empty()) shape = {static_cast<int64_t>(values.size())};
  Hdf5Handle dataset = make_dataset<T>(*impl_, name, {shape.begin(), shape.end()});
  if (values.empty()) return;
  impl_->check(
      H5Dwrite(dataset.get(), hdf5_type<T>(), H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) >= 0,
      "/" + name + " cannot be written (disk full?)");
}

template <typename T>
void Hdf5File::create_dataset(const std::string& name, int64_t size) {
  make_dataset<T>(*impl_, name, {static_cast<hsize_t>(size)});
}

template <typename T>
void Hdf5File::write_at(const std::string& name, int64_t first, std::span<const T> values) {
  if (values.empty()) return;
  Hdf5Handle dataset = open_dataset(*impl_, name);
  const hsize_t start = static_cast<hsize_t>(first);
  const hsize_t count = values.size();
  Hdf5Handle place = impl_->own(H5Dget_space(dataset.get()), H5Sclose, "shape of /" + name);
  Hdf5Handle memory = impl_->own(H5Screate_simple(1, &count, nullptr), H5Sclose, "shape");
  impl_->check(
      H5Sselect_hyperslab(place.get(), H5S_SELECT_SET, &start, nullptr, &count, nullptr) >= 0 &&
          H5Dwrite(dataset.get(), hdf5_type<T>(), memory.get(), place.get(), H5P_DEFAULT,
                   values.data()) >= 0,
      "/" + name + " cannot be written (disk full?)");
}

#define ST_HDF5_INSTANTIATE(T)                                                                    \
  template std::vector<T> Hdf5File::read<T>(const std::string&) const;                            \
  template void Hdf5File::read_into<T>(const std::string&, std::span<T>) const;                   \
  template void Hdf5File::write<T>(const std::string&, std::span<const T>, std::vector<int64_t>); \
  template void Hdf5File::create_dataset<T>(const std::string&, int64_t);                         \
  template void Hdf5File::write_at<T>(const std::string&, int64_t, std::span<const T>);
ST_HDF5_INSTANTIATE(uint16_t)
ST_HDF5_INSTANTIATE(uint32_t)
ST_HDF5_INSTANTIATE(uint64_t)
ST_HDF5_INSTANTIATE(float)
#undef ST_HDF5_INSTANTIATE

}  // namespace smalltalk
