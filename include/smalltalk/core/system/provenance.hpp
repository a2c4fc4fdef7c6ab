// What a file was made from, kept inside it.
#pragma once

#include <map>
#include <string>

namespace smalltalk {

// Hashes of inputs, seeds, sizes, by name. Texts of at most 2048 bytes.
using Provenance = std::map<std::string, std::string>;

// Empty if that is not named.
inline std::string value_of(const Provenance& provenance, const std::string& name) {
  const auto found = provenance.find(name);
  return found == provenance.end() ? std::string() : found->second;
}

}  // namespace smalltalk
