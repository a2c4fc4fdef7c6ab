#include "json_document.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

namespace smalltalk {
namespace {

constexpr size_t kMaxDomainBytes = 256;  // every domain takes as much space as the longest

constexpr const char* kNoNumber = "NaN or Infinity";
constexpr const char* kLargeNumber = "number beyond 64 bits";
constexpr const char* kTwice = "field named twice";
constexpr const char* kNoDomain = "domain that is no text";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

// By the grammar of JSON.
bool is_number(std::string_view text) {
  const auto digits = [&] {
    const size_t size = text.size();
    while (!text.empty() && is_digit(text[0])) text.remove_prefix(1);
    return text.size() < size;
  };
  if (text.starts_with('-')) text.remove_prefix(1);
  if (text.starts_with('0')) {
    text.remove_prefix(1);
  } else if (!digits()) {
    return false;
  }
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    if (!digits()) return false;
  }
  if (text.starts_with('e') || text.starts_with('E')) {
    text.remove_prefix(1);
    if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
    if (!digits()) return false;
  }
  return text.empty();
}

template <typename T>
bool holds(std::string_view number) {
  T value{};
  return std::from_chars(number.data(), number.data() + number.size(), value).ec == std::errc();
}

// Whether simdjson can tell its value.
bool is_held(std::string_view number) {
  if (number.find_first_of(".eE") != std::string_view::npos) return holds<double>(number);
  return holds<int64_t>(number) || holds<uint64_t>(number);
}

bool is_in_words(char c) {
  return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '+' || c == '-' ||
         c == '.';
}

// The end of the string that begins with the quotation mark at `at`.
size_t end_of_string(std::string_view line, size_t at) {
  for (++at; at < line.size() && line[at] != '"'; ++at) {
    if (line[at] == '\\') ++at;
  }
  return std::min(at + 1, line.size());
}

bool is_no_number(std::string_view word) {
  return word == "NaN" || word == "Infinity" || word == "-Infinity";
}

// Calls visit(place in the line, word) with each number, NaN and Infinity outside of strings.
template <typename Visit>
void for_each_number(std::string_view line, const Visit& visit) {
  for (size_t at = 0; at < line.size();) {
    if (line[at] == '"') {
      at = end_of_string(line, at);
      continue;
    }
    if (!is_in_words(line[at])) {
      ++at;
      continue;
    }
    const auto end = static_cast<size_t>(
        std::find_if_not(line.begin() + static_cast<std::ptrdiff_t>(at), line.end(), is_in_words) -
        line.begin());
    const std::string_view word = line.substr(at, end - at);
    if (is_no_number(word) || is_number(word)) visit(at, word);
    at = end;
  }
}

// The last field of that name, as Python has it.
std::optional<simdjson::dom::element> last_field(const simdjson::dom::object& object,
                                                 std::string_view name,
                                                 std::vector<const char*>& bent) {
  std::optional<simdjson::dom::element> last;
  for (const auto& field : object) {
    if (field.key != name) continue;
    if (last) bent.push_back(kTwice);
    last = field.value;
  }
  return last;
}

// What is at a path, if anything is.
std::optional<simdjson::dom::element> value_at(const simdjson::dom::object& object,
                                               std::string_view path,
                                               std::vector<const char*>& bent) {
  std::optional<simdjson::dom::element> value = last_field(object, path, bent);
  if (value) return value;
  // Names may hold dots, too.
  for (size_t dot = path.find('.'); dot != std::string_view::npos; dot = path.find('.', dot + 1)) {
    value = last_field(object, path.substr(0, dot), bent);
    simdjson::dom::object inner;
    if (!value || value->get(inner)) continue;
    if (const auto found = value_at(inner, path.substr(dot + 1), bent)) return found;
  }
  return std::nullopt;
}

std::optional<std::string_view> text_of(const std::optional<simdjson::dom::element>& value) {
  std::string_view text;
  if (!value || value->get(text)) return std::nullopt;
  return text;
}

}  // namespace

std::string without_numbers(std::string_view line, std::vector<const char*>& bent) {
  std::string result(line);
  for_each_number(line, [&](size_t at, std::string_view word) {
    if (is_no_number(word)) {
      bent.push_back(kNoNumber);
    } else if (!is_held(word)) {
      bent.push_back(kLargeNumber);
    }
    result.replace(at, word.size(), word.size(), ' ');
    result[at] = '0';
  });
  return result;
}

std::string with_plain_numbers(std::string_view line) {
  std::string result;
  size_t done = 0;
  for_each_number(line, [&](size_t at, std::string_view word) {
    if (!is_no_number(word) && is_held(word)) return;
    result.append(line.substr(done, at - done)).append("null");
    done = at + word.size();
  });
  return result.append(line.substr(done));
}

std::optional<std::string> JsonDocument::read(std::string_view line, Document& document,
                                              std::vector<const char*>& bent) {
  simdjson::dom::element root;
  // Not the on-demand parser: it would take a line that is broken behind the text.
  if (const auto code = parser_.parse(line.data(), line.size(), false).get(root)) {
    std::vector<const char*> odd;
    const std::string other = without_numbers(line, odd);
    if (odd.empty() || parser_.parse(other).get(root)) {
      return fmt::format("broken JSON ({})", simdjson::error_message(code));
    }
    bent.insert(bent.end(), odd.begin(), odd.end());
  }
  simdjson::dom::object object;
  if (root.is_array()) return "an array, which is read from a .json file, not from a line";
  if (root.get(object)) return "not a JSON object";
  const auto text = text_of(value_at(object, fields_.text, bent));
  if (!text) {
    return fmt::format("no string \"{}\"", fields_.text);
  }
  document = {*text, {}};
  if (fields_.domain.empty()) return std::nullopt;
  const auto domain = value_at(object, fields_.domain, bent);
  if (domain && !domain->is_null() && !domain->is_string()) bent.push_back(kNoDomain);
  document.domain = text_of(domain).value_or(std::string_view());
  if (document.domain.size() > kMaxDomainBytes) {
    return fmt::format("a \"{}\" of more than 256 bytes (data.domain_key = \"\" does without)",
                       fields_.domain);
  }
  if (document.domain.find('\0') != std::string_view::npos) {
    return fmt::format("NUL in \"{}\"", fields_.domain);
  }
  return std::nullopt;
}

}  // namespace smalltalk
