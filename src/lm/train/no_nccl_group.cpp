#include "lm/train/nccl_group.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

c10::intrusive_ptr<c10d::Backend> make_nccl_group(const HostCollectives&, const std::string&) {
  throw Error("this program was built without CUDA and NCCL (SMALLTALK_CUDA=OFF)");
}

}  // namespace smalltalk
