// Which smalltalk this is.
#pragma once

#include <string>

namespace smalltalk {

// "smalltalk 0.1.0 (0123456789ab)": the project's version, and the commit if it was built in a
// clone.
std::string version();

}  // namespace smalltalk
