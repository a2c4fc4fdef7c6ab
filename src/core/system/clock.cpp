#include "smalltalk/core/system/clock.hpp"

#include <chrono>

namespace smalltalk {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace smalltalk
