// The little of HDF5 that the suite needs: datasets of fixed types, each with checksums, and
// attributes on the root group. Every failure is an Error that names the file; damage is noticed
// before anybody sees a wrong value. Private to src/data; does not show hdf5.h. The library knows
// no threads: one thread of a process at a time.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace smalltalk {

inline constexpr int64_t kHdf5FormatVersion = 2;

// T: uint16_t, uint32_t, uint64_t, float, double.
class Hdf5File {
 public:
  // Read-only, without file locks (shared file systems often refuse them; our files are written
  // once and renamed). Error: missing, not HDF5, truncated.
  static Hdf5File open(const std::filesystem::path& path);
  // Creates `path`. Errors name `shown` instead, for files that are renamed when whole.
  static Hdf5File create(const std::filesystem::path& path, const std::filesystem::path& shown);
  ~Hdf5File();
  Hdf5File(Hdf5File&&) noexcept;

  const std::filesystem::path& path() const;  // as errors show it

  // What the attribute `format` says, empty if there is none: a file of another program. Error:
  // another version of the format.
  std::string format() const;
  void require_format(const std::string& format) const;  // Error if it is another
  void write_format(const std::string& format);

  bool has_dataset(const std::string& name) const;
  std::vector<int64_t> shape(const std::string& name) const;
  int64_t element_bytes(const std::string& name) const;
  // Is it of the very type T? HDF5 would convert, and clip, silently.
  template <typename T>
  bool has_type(const std::string& name) const;
  // Byte offset of a contiguous dataset in the file; -1 if it is not laid out so.
  int64_t contiguous_offset(const std::string& name) const;
  // Of each piece of a dataset, see checksums.hpp. Empty: a file of another program has none.
  std::vector<uint64_t> checksums(const std::string& name) const;

  // Reading verifies the pieces that it touches. Error: damaged, or of another type or size.
  template <typename T>
  std::vector<T> read(const std::string& name) const;  // the whole dataset, any rank
  template <typename T>
  void read_into(const std::string& name, std::span<T> out) const;
  // Rows `first` and on along the first dimension, as many as fill `out`.
  template <typename T>
  void read_slice(const std::string& name, int64_t first, std::span<T> out) const;

  template <typename T>
  void write(const std::string& name, std::span<const T> values, std::vector<int64_t> shape = {});
  // A one-dimensional contiguous dataset to be filled by write_at().
  template <typename T>
  void create_dataset(const std::string& name, int64_t size);
  template <typename T>
  void write_at(const std::string& name, int64_t first, std::span<const T> values);
  // Reads back what write_at() wrote and writes its checksums, which it returns. close() does it
  // for those that were not sealed. REQUIRES that no more is written to it.
  std::vector<uint64_t> seal(const std::string& name);

  // A dataset of texts of fixed length, padded with NUL: [size].
  std::vector<std::string> read_list(const std::string& name) const;
  void write_list(const std::string& name, const std::vector<std::string>& values);

  // One int64 or one UTF-8 text of at most 2048 bytes: so long, HDF5 has checksums of its own.
  bool has_attribute(const std::string& name) const;
  std::string text_attribute(const std::string& name) const;
  int64_t integer_attribute(const std::string& name) const;
  void write_text_attribute(const std::string& name, const std::string& value);
  void write_integer_attribute(const std::string& name, int64_t value);
  // All text attributes but `format`; integers, and what other programs write, are left out.
  std::map<std::string, std::string> text_attributes() const;

  // Writes checksums and what is buffered, and closes. A file that was created must be closed so.
  void close();

 private:
  struct Impl;
  explicit Hdf5File(std::unique_ptr<Impl> impl);
  template <typename T>
  void verify(const std::string& name, int64_t first_element, std::span<T> out) const;
  std::unique_ptr<Impl> impl_;
};

}  // namespace smalltalk
