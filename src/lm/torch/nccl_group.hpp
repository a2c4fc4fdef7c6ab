// A group of GPUs as a c10d backend.
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "lm/torch/device.hpp"
#include "lm/torch/group_store.hpp"
#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {
using NcclGroup = c10::intrusive_ptr<c10d::Backend>;
}

extern "C" void smalltalk_make_nccl_group(const smalltalk::HostCollectives& host,
                                          const c10::intrusive_ptr<c10d::Store>& store,
                                          smalltalk::NcclGroup* group);  // in the library

namespace smalltalk {

// Of the ranks of `host`. Collective. Error as of cuda_device() and make_group_store().
inline NcclGroup make_nccl_group(const HostCollectives& host) {
  NcclGroup group;
  reinterpret_cast<decltype(&smalltalk_make_nccl_group)>(
      cuda_function("smalltalk_make_nccl_group"))(host, make_group_store(host), &group);
  return group;
}

}  // namespace smalltalk
