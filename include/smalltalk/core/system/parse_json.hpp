// JSON from files that anybody may have written. Includes JSON for Modern C++, which whoever
// includes this links.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

// Copying, printing and comparing recurse: what is nested deeper would overflow the stack.
inline constexpr int kMaxJsonDepth = 100;

// Error, beginning with `place`: not whole JSON, or nested too deeply.
template <typename Json = nlohmann::json>
Json parse_json(std::string_view text, const std::string& place) {
  const auto watch_depth = [&](int depth, typename Json::parse_event_t, Json&) {
    if (depth <= kMaxJsonDepth) return true;
    throw Error(place + ": its JSON is nested more than " + std::to_string(kMaxJsonDepth) +
                " levels deep");
  };
  try {
    return Json::parse(text, watch_depth);
  } catch (const typename Json::exception& error) {
    throw Error(place + ": not whole JSON (" + printable(error.what()) + ")");
  }
}

// A row of a log; nothing if it is broken, as the last one of a killed process may be.
template <typename Json = nlohmann::json>
std::optional<Json> parse_json_row(std::string_view line) {
  try {
    return parse_json<Json>(line, "");
  } catch (const Error&) {
    return std::nullopt;
  }
}

}  // namespace smalltalk
