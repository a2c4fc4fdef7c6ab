#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <numeric>
#include <sstream>
#include <string_view>

#include "core/experiment/idle_keys.hpp"
#include "core/experiment/toml_file.hpp"
#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

// One value with its key, "section.key", and where it was written, for messages.
struct Entry {
  std::string key;
  std::string place;
  const toml::node* node;
};

std::string type_name(const toml::node& node) {
  if (node.is_string()) return "a string";
  if (node.is_integer()) return "an integer";
  if (node.is_floating_point()) return "a float";
  if (node.is_boolean()) return "true or false";
  if (node.is_array()) return "a list";
  if (node.is_table()) return "a table";
  return "a date or time";
}

[[noreturn]] void wrong_type(const Entry& entry, const std::string& expected) {
  throw Error(fmt::format("{}: {} must be {}, not {}", entry.place, entry.key, expected,
                          type_name(*entry.node)));
}

// ---- One overload per type of field -----------------------------------------------------------

void assign(const Entry& entry, int64_t& field) {
  if (!entry.node->is_integer()) wrong_type(entry, "an integer");
  field = **entry.node->as_integer();
}

void assign(const Entry& entry, uint64_t& field) {
  int64_t value = 0;
  assign(entry, value);
  if (value < 0) throw Error(fmt::format("{}: {} must not be negative", entry.place, entry.key));
  field = static_cast<uint64_t>(value);
}

void assign(const Entry& entry, double& field) {
  if (!entry.node->is_number()) wrong_type(entry, "a number");
  field = *entry.node->value<double>();
  if (!std::isfinite(field)) {
    throw Error(fmt::format("{}: {} must be finite", entry.place, entry.key));
  }
}

void assign(const Entry& entry, bool& field) {
  if (!entry.node->is_boolean()) wrong_type(entry, "true or false");
  field = **entry.node->as_boolean();
}

void assign(const Entry& entry, std::string& field) {
  if (!entry.node->is_string()) wrong_type(entry, "a string");
  field = **entry.node->as_string();
}

void assign(const Entry& entry, std::vector<std::string>& field) {
  field.clear();
  if (entry.node->is_string()) {  // a list of one, mostly from --set
    field.push_back(**entry.node->as_string());
    return;
  }
  const toml::array* list = entry.node->as_array();
  if (list == nullptr) wrong_type(entry, "a list of strings");
  for (const toml::node& item : *list) {
    const std::string element = fmt::format("{}[{}]", entry.key, field.size());
    assign(Entry{element, entry.place, &item}, field.emplace_back());
  }
}

// An enumeration is written as one of the names that to_string() gives.
template <typename Enum>
void assign_enum(const Entry& entry, Enum& field, std::initializer_list<Enum> values) {
  std::string name;
  assign(entry, name);
  std::string known;
  for (const Enum value : values) {
    if (to_string(value) == name) {
      field = value;
      return;
    }
    known += (known.empty() ? "" : " or ") + to_string(value);
  }
  throw Error(
      fmt::format("{}: {} must be {}, not '{}'", entry.place, entry.key, known, printable(name)));
}

void assign(const Entry& entry, FeedForward& field) {
  assign_enum(entry, field, {FeedForward::swiglu, FeedForward::relu2});
}

void assign(const Entry& entry, AssignmentMethod& field) {
  assign_enum(entry, field,
              {AssignmentMethod::greedy, AssignmentMethod::margin, AssignmentMethod::optimal,
               AssignmentMethod::argmax});
}

void assign(const Entry& entry, Packing& field) {
  assign_enum(entry, field, {Packing::concat, Packing::documents});
}

void assign(const Entry& entry, TextOrder& field) {
  assign_enum(entry, field, {TextOrder::file, TextOrder::similar});
}

void assign(const Entry& entry, Recompute& field) {
  assign_enum(entry, field,
              {Recompute::automatic, Recompute::none, Recompute::selective, Recompute::full});
}

void assign(const Entry& entry, SegmentRouting& field) {
  assign_enum(entry, field, {SegmentRouting::previous, SegmentRouting::prefix});
}

void assign(const Entry& entry, FirstSegment& field) {
  assign_enum(entry, field, {FirstSegment::own, FirstSegment::uniform});
}

void assign(const Entry& entry, Sharding& field) {
  assign_enum(entry, field, {Sharding::routers, Sharding::ngrams});
}

void assign(const Entry& entry, Decay& field) { assign_enum(entry, field, kDecays); }

// ---- Unknown keys -----------------------------------------------------------------------------

// Levenshtein: the fewest letters to insert, delete or change.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i + 1;
    for (size_t j = 0; j < b.size(); ++j) {
      const size_t change = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, change});
    }
  }
  return row.back();
}

std::string_view last_part(std::string_view key) { return key.substr(key.rfind('.') + 1); }

// The right key in the wrong section counts as one change, and so does half a name: "steps" means
// "train_steps" rather than "seed". What has no section may be one.
size_t key_distance(std::string_view a, std::string_view b) {
  const std::string_view name_a = last_part(a);
  const std::string_view name_b = last_part(b);
  size_t distance = edit_distance(name_a, name_b);
  const auto& [shorter, longer] =
      std::minmax(name_a, name_b, [](auto x, auto y) { return x.size() < y.size(); });
  if (shorter.size() >= 4 && longer.find(shorter) != std::string_view::npos) {
    distance = std::min(distance, size_t{1});
  }
  if (name_a.size() == a.size()) {
    distance = std::min(distance, edit_distance(a, b.substr(0, b.find('.'))) + 1);
  }
  const bool same_section =
      a.substr(0, a.size() - name_a.size()) == b.substr(0, b.size() - name_b.size());
  return std::min(edit_distance(a, b), distance + (same_section ? 0 : 1));
}

[[noreturn]] void unknown_key(const Entry& entry, const std::vector<std::string>& known) {
  const std::string key = printable(entry.key);  // of a length that can be compared
  const auto nearest =
      std::min_element(known.begin(), known.end(), [&](const std::string& a, const std::string& b) {
        return key_distance(key, a) < key_distance(key, b);
      });
  const bool near = key_distance(key, *nearest) <= std::max<size_t>(3, last_part(key).size() / 3);
  throw Error(fmt::format("{}: unknown key '{}'{} (--help-experiment lists all keys)", entry.place,
                          key, near ? fmt::format("; did you mean '{}'?", *nearest) : ""));
}

// ---- Reading ----------------------------------------------------------------------------------

class Reader {
 public:
  explicit Reader(Experiment& experiment) {
    visit_fields(experiment, [this](const std::string& key, auto& field, const char*) {
      keys_.push_back(key);
      setters_[key] = [&field](const Entry& entry) { assign(entry, field); };
    });
  }

  void set(const Entry& entry) const {
    const auto setter = setters_.find(entry.key);
    if (setter == setters_.end()) unknown_key(entry, keys_);
    setter->second(entry);
  }

  void set_all(const toml::table& table, const std::string& prefix, const std::string& file) const {
    for (const auto& [name, node] : table) {
      const std::string key = prefix + std::string(name.str());
      const Entry entry{key, fmt::format("{}:{}", file, name.source().begin.line), &node};
      if (node.is_table() && is_section(key)) {
        set_all(*node.as_table(), key + ".", file);
      } else if (is_section(key)) {
        throw Error(fmt::format("{}: '{}' is a section: write [{}] and its keys below", entry.place,
                                key, key));
      } else {
        set(entry);
      }
    }
  }

 private:
  bool is_section(const std::string& name) const {
    return std::any_of(keys_.begin(), keys_.end(),
                       [&](const std::string& key) { return key.starts_with(name + "."); });
  }

  std::vector<std::string> keys_;
  std::map<std::string, std::function<void(const Entry&)>> setters_;
};

// Whether TOML can hold it, as the resolved experiment must: UTF-8. Its own parser says so of a
// comment.
bool is_utf8(std::string text) {
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = ' ';
  }
  try {
    static_cast<void>(toml::parse("#" + text));
    return true;
  } catch (const toml::parse_error&) {
    return false;
  }
}

// `text` as the TOML value it is, or as a string if it is a bare word or path.
toml::table parse_override(const std::string& argument, const std::string& text) {
  if (text.empty()) return toml::table{{"value", ""}};
  try {
    toml::table table = toml::parse("value = " + text);
    if (table.size() == 1) return table;
  } catch (const toml::parse_error& error) {
    if (std::string_view("[{\"'").find(text.front()) != std::string_view::npos) {
      throw Error(
          fmt::format("--set {}: not a TOML value: {}", printable(argument), explain_toml(error)));
    }
  }
  if (!is_utf8(text)) throw Error(fmt::format("--set {}: not UTF-8", printable(argument)));
  toml::table table;
  table.insert("value", text);
  return table;
}

void apply_override(const Reader& reader, const std::string& argument) {
  const size_t equals = argument.find('=');
  if (equals == std::string::npos || equals == 0) {
    throw Error(fmt::format("--set {}: write section.key=value", printable(argument)));
  }
  const toml::table table = parse_override(argument, argument.substr(equals + 1));
  reader.set({argument.substr(0, equals), "--set " + printable(argument), table.get("value")});
}

}  // namespace

Experiment load_experiment(const std::filesystem::path& file,
                           const std::vector<std::string>& overrides) {
  Experiment experiment;
  const Reader reader(experiment);
  reader.set_all(read_toml(file), "", file.string());
  for (const std::string& argument : overrides) apply_override(reader, argument);
  experiment.validate();
  refuse_idle_keys(experiment);
  return experiment;
}

}  // namespace smalltalk
