// What hdf5_file.cpp, hdf5_checksums.cpp and hdf5_attributes.cpp share.
#pragma once

#include "hdf5_file.hpp"
#include "hdf5_handle.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

// ": No space left on device" if that is why the last call failed, else nothing.
std::string system_reason();

struct Hdf5File::Impl {
  std::filesystem::path shown;
  Hdf5Handle file;
  bool created = false;
  std::vector<std::string> unsealed;  // datasets of a created file that have no checksums yet

  // Names the file and, if HDF5 failed because the system did, the system's reason.
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(shown.string() + ": " + what + system_reason());
  }
  // Takes ownership of an id that an HDF5 call returned, or fails saying what it was for.
  Hdf5Handle own(hid_t id, Hdf5Handle::Close close, const std::string& what) const {
    if (id < 0) fail(what);
    return Hdf5Handle(id, close);
  }
  void check(bool good, const std::string& what) const {
    if (!good) fail(what);
  }
  // Of a dataset that was written to: HDF5 may have kept some of it back until now.
  void close_dataset(Hdf5Handle dataset, const std::string& name) const {
    check(dataset.close(), "/" + name + " cannot be written");
  }

  Hdf5Handle open_dataset(const std::string& name) const;
  // A small file may not ask for any amount of memory.
  void require_stored(const Hdf5Handle& dataset, const std::string& name) const;
  std::vector<hsize_t> shape_of(const Hdf5Handle& dataset) const;
  Hdf5Handle type_of(const Hdf5Handle& dataset) const;
  // Contiguous, to be filled. The caller sees to its checksums.
  Hdf5Handle make_dataset(const std::string& name, hid_t type, const std::vector<hsize_t>& shape);
  // Reads rows [first, first + count) along the first dimension, unverified.
  void read_rows(const Hdf5Handle& dataset, const std::string& name, hid_t type, hsize_t first,
                 hsize_t count, void* out) const;

  void write_checksums(const std::string& name, std::span<const uint64_t> checksums);
  // Of pieces [first, first + count) of a dataset of `bytes` bytes; empty if it has none and need
  // not have any.
  std::vector<uint64_t> read_checksums(const std::string& name, int64_t bytes, int64_t first,
                                       int64_t count) const;
};

// The library prints every failure by itself unless told not to. And it tidies up when the process
// ends, which crashes if a file could not be closed because its disk is full; what is whole has
// been closed by then.
inline void silence_hdf5() {
  [[maybe_unused]] static const herr_t once = H5dont_atexit();
  H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
}

}  // namespace smalltalk
