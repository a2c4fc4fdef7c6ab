// Where the ranks of a group tell each other what NCCL needs to begin.
#pragma once

#include <chrono>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// A store in the memory of the first rank, to which the others connect over TCP: no file system
// that all of them see, nor locks on it, is needed. The first rank's machine is told by its host
// name and port over `host`. SMALLTALK_GROUP_HOST, on the first rank, names another address of it.
// Collective. Error on all ranks: one of them cannot reach the store for so long.
c10::intrusive_ptr<c10d::Store> make_group_store(
    const HostCollectives& host, std::chrono::milliseconds patience = std::chrono::minutes(5));

}  // namespace smalltalk
