// What a test reads in the errors that it provokes.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

// What `f` complains about; empty if it does not.
template <typename F>
std::string complaint_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

inline testing::AssertionResult mentions(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "no '" << part << "' in '" << text << "'";
}

}  // namespace smalltalk
