#include "smalltalk/core/system/instruction_set.hpp"

namespace smalltalk {

std::vector<std::string_view> processor_instruction_sets() {
  std::vector<std::string_view> sets;
  if (__builtin_cpu_supports("avx512f")) sets.emplace_back("avx512");
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.emplace_back("avx2");
  sets.emplace_back("sse2");
  return sets;
}

}  // namespace smalltalk
