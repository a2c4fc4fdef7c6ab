#include "version.hpp"

namespace smalltalk {

std::string version() {
  const std::string commit = SMALLTALK_COMMIT;
  return "smalltalk " SMALLTALK_VERSION + (commit.empty() ? "" : " (" + commit + ")");
}

}  // namespace smalltalk
