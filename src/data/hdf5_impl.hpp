// What hdf5_file.cpp and hdf5_attributes.cpp share.
#pragma once

#include "hdf5_file.hpp"
#include "hdf5_handle.hpp"
#include "smalltalk/core/error.hpp"

namespace smalltalk {

struct Hdf5File::Impl {
  std::filesystem::path shown;
  Hdf5Handle file;

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(shown.string() + ": " + what);
  }
  // Takes ownership of an id that an HDF5 call returned, or fails saying what it was for.
  Hdf5Handle own(hid_t id, Hdf5Handle::Close close, const std::string& what) const {
    if (id < 0) fail(what);
    return Hdf5Handle(id, close);
  }
  void check(bool good, const std::string& what) const {
    if (!good) fail(what);
  }
};

}  // namespace smalltalk
