// Attributes of the root group: variable-length UTF-8 strings, which h5py shows as str, and int64.
#include <cstring>

#include "hdf5_impl.hpp"

namespace smalltalk {
namespace {

Hdf5Handle string_type() {
  Hdf5Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type.get(), H5T_VARIABLE);
  H5Tset_cset(type.get(), H5T_CSET_UTF8);
  return type;
}

template <typename Impl>
Hdf5Handle open_attribute(const Impl& impl, const std::string& name) {
  return impl.own(H5Aopen(impl.file.get(), name.c_str(), H5P_DEFAULT), H5Aclose,
                  "has no attribute '" + name + "'");
}

// Variable-length strings, whatever the number; h5py and h5dump write them as we do.
template <typename Impl>
std::vector<std::string> read_strings(const Impl& impl, const std::string& name) {
  Hdf5Handle attribute = open_attribute(impl, name);
  Hdf5Handle stored = impl.own(H5Aget_type(attribute.get()), H5Tclose, "type of " + name);
  Hdf5Handle space = impl.own(H5Aget_space(attribute.get()), H5Sclose, "shape of " + name);
  impl.check(H5Tis_variable_str(stored.get()) > 0, "attribute '" + name + "' is not text");
  const hssize_t count = H5Sget_simple_extent_npoints(space.get());
  std::vector<char*> raw(static_cast<size_t>(std::max<hssize_t>(count, 0)), nullptr);
  if (raw.empty()) return {};
  // The character set must agree with the stored one, or HDF5 refuses to convert.
  Hdf5Handle type = string_type();
  H5Tset_cset(type.get(), H5Tget_cset(stored.get()));
  impl.check(H5Aread(attribute.get(), type.get(), raw.data()) >= 0,
             "attribute '" + name + "' cannot be read");
  std::vector<std::string> values;
  values.reserve(raw.size());
  for (const char* text : raw) values.emplace_back(text == nullptr ? "" : text);
  H5Dvlen_reclaim(type.get(), space.get(), H5P_DEFAULT, raw.data());
  return values;
}

template <typename Impl>
void write_strings(const Impl& impl, const std::string& name,
                   const std::vector<std::string>& values, Hdf5Handle space) {
  Hdf5Handle type = string_type();
  Hdf5Handle attribute = impl.own(
      H5Acreate2(impl.file.get(), name.c_str(), type.get(), space.get(), H5P_DEFAULT, H5P_DEFAULT),
      H5Aclose, "attribute '" + name + "' cannot be created");
  std::vector<const char*> raw;
  raw.reserve(values.size());
  for (const std::string& value : values) raw.push_back(value.c_str());
  if (raw.empty()) return;
  impl.check(H5Awrite(attribute.get(), type.get(), raw.data()) >= 0,
             "attribute '" + name + "' cannot be written");
}

}  // namespace

bool Hdf5File::has_attribute(const std::string& name) const {
  return H5Aexists(impl_->file.get(), name.c_str()) > 0;
}

std::string Hdf5File::text_attribute(const std::string& name) const {
  std::vector<std::string> values = read_strings(*impl_, name);
  impl_->check(values.size() == 1, "attribute '" + name + "' is not one text");
  return values[0];
}

std::vector<std::string> Hdf5File::list_attribute(const std::string& name) const {
  return read_strings(*impl_, name);
}

int64_t Hdf5File::integer_attribute(const std::string& name) const {
  Hdf5Handle attribute = open_attribute(*impl_, name);
  int64_t value = 0;
  impl_->check(H5Aread(attribute.get(), H5T_NATIVE_INT64, &value) >= 0,
               "attribute '" + name + "' is not a number");
  return value;
}

void Hdf5File::write_text_attribute(const std::string& name, const std::string& value) {
  write_strings(*impl_, name, {value}, Hdf5Handle(H5Screate(H5S_SCALAR), H5Sclose));
}

void Hdf5File::write_list_attribute(const std::string& name,
                                    const std::vector<std::string>& values) {
  const hsize_t size = values.size();
  write_strings(*impl_, name, values, Hdf5Handle(H5Screate_simple(1, &size, nullptr), H5Sclose));
}

void Hdf5File::write_integer_attribute(const std::string& name, int64_t value) {
  Hdf5Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  Hdf5Handle attribute = impl_->own(H5Acreate2(impl_->file.get(), name.c_str(), H5T_STD_I64LE,
                                               space.get(), H5P_DEFAULT, H5P_DEFAULT),
                                    H5Aclose, "attribute '" + name + "' cannot be created");
  impl_->check(H5Awrite(attribute.get(), H5T_NATIVE_INT64, &value) >= 0,
               "attribute '" + name + "' cannot be written");
}

std::map<std::string, std::string> Hdf5File::text_attributes() const {
  std::vector<std::string> names;
  hsize_t position = 0;
  const auto collect = [](hid_t, const char* name, const H5A_info_t*, void* out) -> herr_t {
    static_cast<std::vector<std::string>*>(out)->push_back(name);
    return 0;
  };
  H5Aiterate2(impl_->file.get(), H5_INDEX_NAME, H5_ITER_INC, &position, collect, &names);
  std::map<std::string, std::string> attributes;
  for (const std::string& name : names) {
    if (name == "format") continue;
    Hdf5Handle attribute = open_attribute(*impl_, name);
    Hdf5Handle type = impl_->own(H5Aget_type(attribute.get()), H5Tclose, "type of " + name);
    if (H5Tis_variable_str(type.get()) <= 0) continue;
    const std::vector<std::string> values = read_strings(*impl_, name);
    if (values.size() == 1) attributes[name] = values[0];
  }
  return attributes;
}

void Hdf5File::write_format(const std::string& format) {
  write_text_attribute("format", format);
  write_integer_attribute("version", kHdf5FormatVersion);
}

void Hdf5File::require_format(const std::string& format) const {
  if (!has_attribute("format")) impl_->fail("not a file of this suite (no attribute 'format')");
  const std::string found = text_attribute("format");
  if (found != format) impl_->fail("holds '" + found + "', where '" + format + "' is needed");
  const int64_t version = integer_attribute("version");
  if (version != kHdf5FormatVersion) {
    impl_->fail("has version " + std::to_string(version) + " of its format; this program reads " +
                std::to_string(kHdf5FormatVersion));
  }
}

}  // namespace smalltalk
