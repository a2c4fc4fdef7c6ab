#include "smalltalk/core/system/instruction_set.hpp"

#include <algorithm>
#include <cstdlib>
#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

const std::vector<std::string_view>& chosen_instruction_sets() {
  static const std::vector<std::string_view> chosen = [] {
    std::vector<std::string_view> sets = processor_instruction_sets();
    const char* wanted = std::getenv("SMALLTALK_ISA");
    if (wanted == nullptr) return sets;
    const auto first = std::find(sets.begin(), sets.end(), wanted);
    if (first == sets.end()) {
      std::string names;
      for (const std::string_view set : sets) names.append(names.empty() ? "" : ", ").append(set);
      throw Error(std::string("SMALLTALK_ISA is '") + wanted + "': this processor has " + names);
    }
    sets.erase(sets.begin(), first);
    return sets;
  }();
  return chosen;
}

}  // namespace smalltalk
