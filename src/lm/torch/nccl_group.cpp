#include "lm/torch/nccl_group.hpp"

#include <chrono>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "smalltalk/core/system/error.hpp"

using namespace smalltalk;

extern "C" void smalltalk_make_nccl_group(const HostCollectives& host,
                                          const std::string& rendezvous, NcclGroup* group) {
  if (rendezvous.empty()) throw Error("a group of GPUs needs a rendezvous file");
  // A file left behind by an earlier try of the same job would make ranks wait for keys of the
  // dead: every try takes a new name, which the first rank chooses.
  int64_t attempt = std::chrono::system_clock::now().time_since_epoch().count();
  host.broadcast(std::as_writable_bytes(std::span(&attempt, 1)), 0);
  auto store =
      c10::make_intrusive<c10d::FileStore>(rendezvous + "." + std::to_string(attempt), host.size);
  *group = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(store), host.rank, host.size);
}
