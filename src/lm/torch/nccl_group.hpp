// A group of GPUs as a c10d backend.
#pragma once

#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "lm/torch/device.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {
using NcclGroup = c10::intrusive_ptr<c10d::Backend>;
}

extern "C" void smalltalk_make_nccl_group(const smalltalk::HostCollectives& host,
                                          const std::string& rendezvous,
                                          smalltalk::NcclGroup* group);  // in the library

namespace smalltalk {

// The ranks of `host` find each other through a file beside `rendezvous`, on a file system that all
// of them see. Error as of cuda_device().
inline NcclGroup make_nccl_group(const HostCollectives& host, const std::string& rendezvous) {
  NcclGroup group;
  reinterpret_cast<decltype(&smalltalk_make_nccl_group)>(
      cuda_function("smalltalk_make_nccl_group"))(host, rendezvous, &group);
  return group;
}

}  // namespace smalltalk
