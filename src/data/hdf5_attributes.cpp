// Text of fixed length: attributes (beside int64 ones) and lists. Not text of variable length:
// HDF5 keeps that in a heap without checksums, and reads a damaged one into memory that is too
// small for it. Nor long attributes, which have no checksums either: lists are datasets.
#include <algorithm>
#include <cstring>

#include "checksums.hpp"
#include "hdf5_impl.hpp"

namespace smalltalk {
namespace {

constexpr size_t kMaxAttributeBytes = 2048;  // HDF5 has checksums up to 4 KiB
constexpr size_t kMaxForeignBytes = 1 << 20;

// One attribute as it is stored.
struct RawAttribute {
  bool is_text = false;  // of fixed length
  std::vector<char> bytes;
};

std::string text_of(std::span<const char> padded) {
  return {padded.data(), strnlen(padded.data(), padded.size())};
}

Hdf5Handle text_type(size_t size) {
  Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), std::max<size_t>(size, 1));
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  H5Tset_strpad(type.get(), H5T_STR_NULLPAD);
  return type;
}

bool is_fixed_text(const Hdf5Handle& type) {
  return H5Tget_class(type.get()) == H5T_STRING && H5Tis_variable_str(type.get()) == 0;
}

// Empty if it is of a kind that the suite does not write.
template <typename Impl>
RawAttribute read_raw(const Impl& impl, const std::string& name) {
  const Hdf5Handle attribute =
      impl.own(H5Aopen(impl.file.get(), name.c_str(), H5P_DEFAULT), H5Aclose,
               "has no attribute '" + name + "', or it is damaged; make it again");
  const Hdf5Handle type = impl.own(H5Aget_type(attribute.get()), H5Tclose, "type of " + name);
  const Hdf5Handle space = impl.own(H5Aget_space(attribute.get()), H5Sclose, "shape of " + name);
  RawAttribute raw;
  raw.is_text = is_fixed_text(type);
  const bool known = raw.is_text || H5Tequal(type.get(), H5T_STD_I64LE) > 0;
  if (!known || H5Sget_simple_extent_npoints(space.get()) != 1 ||
      H5Tget_size(type.get()) > kMaxForeignBytes) {
    return {};
  }
  raw.bytes.resize(H5Tget_size(type.get()));
  impl.check(H5Aread(attribute.get(), type.get(), raw.bytes.data()) >= 0,
             "attribute '" + name + "' cannot be read; make it again");
  return raw;
}

template <typename Impl>
void write_attribute(const Impl& impl, const std::string& name, hid_t type, const void* value) {
  const Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Hdf5Handle attribute = impl.own(
      H5Acreate2(impl.file.get(), name.c_str(), type, space.get(), H5P_DEFAULT, H5P_DEFAULT),
      H5Aclose, "attribute '" + name + "' cannot be created");
  impl.check(H5Awrite(attribute.get(), type, value) >= 0,
             "attribute '" + name + "' cannot be written");
}

template <typename Impl>
std::vector<std::string> attribute_names(const Impl& impl) {
  std::vector<std::string> names;
  hsize_t position = 0;
  const auto collect = [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->push_back(name);
    return 0;
  };
  impl.check(
      H5Aiterate2(impl.file.get(), H5_INDEX_NAME, H5_ITER_INC, &position, collect, &names) >= 0,
      "its list of attributes is damaged; make it again");
  return names;
}

}  // namespace

bool Hdf5File::has_attribute(const std::string& name) const {
  const htri_t found = H5Aexists(impl_->file.get(), name.c_str());
  impl_->check(found >= 0, "its list of attributes is damaged; make it again");
  return found > 0;
}

std::string Hdf5File::text_attribute(const std::string& name) const {
  const RawAttribute raw = read_raw(*impl_, name);
  impl_->check(raw.is_text, "attribute '" + name + "' is not text of fixed length");
  return text_of(raw.bytes);
}

int64_t Hdf5File::integer_attribute(const std::string& name) const {
  const RawAttribute raw = read_raw(*impl_, name);
  int64_t value = 0;
  impl_->check(!raw.is_text && raw.bytes.size() == sizeof(value),
               "attribute '" + name + "' is not an int64");
  std::memcpy(&value, raw.bytes.data(), sizeof(value));
  return value;
}

void Hdf5File::write_text_attribute(const std::string& name, const std::string& value) {
  impl_->check(value.size() <= kMaxAttributeBytes,
               "attribute '" + name + "' is longer than 2048 bytes");
  const std::string padded = value.empty() ? std::string(1, '\0') : value;
  write_attribute(*impl_, name, text_type(padded.size()).get(), padded.data());
}

void Hdf5File::write_integer_attribute(const std::string& name, int64_t value) {
  write_attribute(*impl_, name, H5T_STD_I64LE, &value);
}

std::vector<std::string> Hdf5File::read_list(const std::string& name) const {
  const Hdf5Handle dataset = impl_->open_dataset(name);
  const Hdf5Handle type = impl_->type_of(dataset);
  const std::vector<hsize_t> shape = impl_->shape_of(dataset);
  impl_->check(is_fixed_text(type) && shape.size() == 1, "/" + name + " is not a list of texts");
  const size_t size = H5Tget_size(type.get());
  std::vector<char> bytes(shape[0] * size);
  if (!bytes.empty()) impl_->read_rows(dataset, name, type.get(), 0, shape[0], bytes.data());
  const std::vector<uint64_t> found = hash_pieces(std::as_bytes(std::span(bytes)));
  const std::vector<uint64_t> expected = checksums(name);
  const auto wrong = std::mismatch(expected.begin(), expected.end(), found.begin()).first;
  if (wrong != expected.end()) {
    impl_->fail(
        damage_near(name, (wrong - expected.begin()) * kPieceBytes / static_cast<int64_t>(size)));
  }
  std::vector<std::string> values;
  for (size_t i = 0; i < shape[0]; ++i) {
    values.push_back(text_of(std::span<const char>(bytes).subspan(i * size, size)));
  }
  return values;
}

void Hdf5File::write_list(const std::string& name, const std::vector<std::string>& values) {
  size_t size = 1;
  for (const std::string& value : values) size = std::max(size, value.size());
  std::vector<char> bytes(values.size() * size, '\0');
  for (size_t i = 0; i < values.size(); ++i) values[i].copy(bytes.data() + i * size, size);
  const Hdf5Handle type = text_type(size);
  Hdf5Handle dataset = impl_->make_dataset(name, type.get(), {values.size()});
  impl_->check(bytes.empty() || H5Dwrite(dataset.get(), type.get(), H5S_ALL, H5S_ALL, H5P_DEFAULT,
                                         bytes.data()) >= 0,
               "/" + name + " cannot be written");
  impl_->close_dataset(std::move(dataset), name);
  impl_->write_checksums(name, hash_pieces(std::as_bytes(std::span(bytes))));
}

std::map<std::string, std::string> Hdf5File::text_attributes() const {
  std::map<std::string, std::string> attributes;
  for (const std::string& name : attribute_names(*impl_)) {
    if (name == "format") continue;
    const RawAttribute raw = read_raw(*impl_, name);
    if (raw.is_text) attributes[name] = text_of(raw.bytes);
  }
  return attributes;
}

void Hdf5File::write_format(const std::string& format) {
  write_text_attribute("format", format);
  write_integer_attribute("version", kHdf5FormatVersion);
}

std::string Hdf5File::format() const {
  if (!has_attribute("format")) return {};
  // The version first: what else is there, and how, depends on it.
  const int64_t version = integer_attribute("version");
  if (version != kHdf5FormatVersion) {
    impl_->fail("has version " + std::to_string(version) + " of its format; this program reads " +
                std::to_string(kHdf5FormatVersion) + ": make it again");
  }
  return text_attribute("format");
}

void Hdf5File::require_format(const std::string& format) const {
  const std::string found = this->format();
  if (found.empty()) impl_->fail("not a file of this suite (no attribute 'format')");
  if (found != format) impl_->fail("holds '" + found + "', where '" + format + "' is needed");
}

}  // namespace smalltalk
