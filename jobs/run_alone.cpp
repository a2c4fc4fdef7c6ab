#include <exception>

#include "jobs.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {

int run_alone(const std::string& job, const std::function<void()>& body) {
  try {
    body();
    return kExitDone;
  } catch (const std::exception& error) {
    log_error(job + ": " + error.what());
    return kExitFailure;
  }
}

}  // namespace smalltalk
