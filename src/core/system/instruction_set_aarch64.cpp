#include "smalltalk/core/system/instruction_set.hpp"

namespace smalltalk {

// Every 64-bit ARM processor has NEON.
std::vector<std::string_view> processor_instruction_sets() { return {"neon"}; }

}  // namespace smalltalk
