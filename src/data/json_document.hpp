// One line of JSON as a document. Private to src/data.
#pragma once

#include <simdjson.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/data/documents.hpp"

namespace smalltalk {

class JsonDocument {
 public:
  // REQUIRES `fields` to outlive it.
  explicit JsonDocument(const DocumentFields& fields) : fields_(fields) {}

  // Why the line gives no document; none if it does: `document` then lies in memory that the next
  // call overwrites. REQUIRES UTF-8, and simdjson::SIMDJSON_PADDING readable bytes behind it.
  // `bent` gets what was read although it breaks a rule.
  std::optional<std::string> read(std::string_view line, Document& document,
                                  std::vector<const char*>& bent);

 private:
  const DocumentFields& fields_;
  simdjson::dom::parser parser_;
};

// The line with 0 in place of every number, NaN and Infinity, in as many bytes. For lines that
// simdjson refuses: it holds no number beyond 64 bits, and nobody here asks for any. `bent` gets
// what there was that it refuses.
std::string without_numbers(std::string_view line, std::vector<const char*>& bent);
// With null in place of those that simdjson refuses, for readers that ask for the others.
std::string with_plain_numbers(std::string_view line);

}  // namespace smalltalk
