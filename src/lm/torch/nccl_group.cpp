#include "lm/torch/nccl_group.hpp"

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

using namespace smalltalk;

extern "C" void smalltalk_make_nccl_group(const HostCollectives& host,
                                          const c10::intrusive_ptr<c10d::Store>& store,
                                          NcclGroup* group) {
  *group = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, host.rank, host.size);
}
