// The little of HDF5 that the suite needs: one-dimensional (and one two-dimensional) datasets of
// fixed types and attributes on the root group. Every failure is an Error that names the file.
// Private to src/data; does not show hdf5.h. One thread per object.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

inline constexpr int64_t kHdf5FormatVersion = 1;

// T: uint16_t, uint32_t, uint64_t, float.
class Hdf5File {
 public:
  // Read-only, without file locks (shared file systems often refuse them; our files are written
  // once and renamed). Error: missing, not HDF5, truncated.
  static Hdf5File open(const std::filesystem::path& path);
  // Creates `path`. Errors name `shown` instead, for files that are renamed when whole.
  static Hdf5File create(const std::filesystem::path& path, const std::filesystem::path& shown);
  ~Hdf5File();
  Hdf5File(Hdf5File&&) noexcept;

  // Refuses a file whose attributes `format` and `version` are not these.
  void require_format(const std::string& format) const;
  void write_format(const std::string& format);

  bool has_dataset(const std::string& name) const;
  std::vector<int64_t> shape(const std::string& name) const;
  int64_t element_bytes(const std::string& name) const;
  // Byte offset of a contiguous dataset in the file. Error if it has none.
  int64_t contiguous_offset(const std::string& name) const;

  template <typename T>
  std::vector<T> read(const std::string& name) const;  // the whole dataset, any rank
  template <typename T>
  void read_into(const std::string& name, std::span<T> out) const;
  template <typename T>
  void write(const std::string& name, std::span<const T> values, std::vector<int64_t> shape = {});
  // A one-dimensional contiguous dataset to be filled by write_at().
  template <typename T>
  void create_dataset(const std::string& name, int64_t size);
  template <typename T>
  void write_at(const std::string& name, int64_t first, std::span<const T> values);

  bool has_attribute(const std::string& name) const;
  std::string text_attribute(const std::string& name) const;
  int64_t integer_attribute(const std::string& name) const;
  std::vector<std::string> list_attribute(const std::string& name) const;
  void write_text_attribute(const std::string& name, const std::string& value);
  void write_integer_attribute(const std::string& name, int64_t value);
  void write_list_attribute(const std::string& name, const std::vector<std::string>& values);
  // All text attributes but `format`; the integers are left out.
  std::map<std::string, std::string> text_attributes() const;

  // Writes what is buffered and closes. A file that was created must be closed by this.
  void close();

 private:
  struct Impl;
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
