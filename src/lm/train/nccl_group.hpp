// A group of GPUs as a c10d backend. nccl_group.cpp where it is built with CUDA; without,
// no_nccl_group.cpp, which throws.
#pragma once

#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>

#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// The ranks of `host` find each other through a file beside `rendezvous`, on a file system that all
// of them see.
c10::intrusive_ptr<c10d::Backend> make_nccl_group(const HostCollectives& host,
                                                  const std::string& rendezvous);

}  // namespace smalltalk
