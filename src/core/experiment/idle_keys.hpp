// Keys that were set and cannot act beside the others. Private to src/core.
#pragma once

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// Error naming the first key whose value is not the default and has no effect. The table in
// idle_keys.cpp lists what is found.
void refuse_idle_keys(const Experiment& experiment);

}  // namespace smalltalk
