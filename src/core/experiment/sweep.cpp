#include "smalltalk/core/experiment/sweep.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "core/experiment/toml_file.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"

namespace smalltalk {
namespace {

// A table whose keys are all known, and each of which may be there.
class Keys {
 public:
  Keys(const toml::table& table, std::string place, std::initializer_list<const char*> known)
      : table_(table), place_(std::move(place)) {
    for (const auto& [key, node] : table) {
      const std::string name(key.str());
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        fail(name, fmt::format("is unknown here; there are {}", fmt::join(known, ", ")));
      }
    }
  }

  bool has(const char* key) const { return table_.contains(key); }
  [[noreturn]] void fail(const std::string& key, const std::string& problem) const {
    throw Error(fmt::format("{}: {} {}", place_, printable(key), problem));
  }

  std::string text(const char* key) const {
    const auto value = table_[key].value<std::string>();
    if (!value || value->empty()) fail(key, "must be there, and a string");
    return *value;
  }
  std::string text_or(const char* key, const std::string& otherwise) const {
    return has(key) ? text(key) : otherwise;
  }
  // One, or a list of them; none if the key is missing.
  template <typename Value>
  std::vector<Value> list(const char* key, const char* of) const {
    std::vector<Value> values;
    const auto add = [&](const toml::node& node) {
      const auto value = node.value_exact<Value>();
      if (!value) fail(key, fmt::format("must be {}, or a list of them", of));
      values.push_back(*value);
    };
    if (const toml::array* all = table_[key].as_array()) {
      for (const toml::node& node : *all) add(node);
      if (values.empty()) fail(key, "must not be empty");
    } else if (has(key)) {
      add(*table_.get(key));
    }
    return values;
  }
  std::vector<std::string> texts(const char* key) const {
    return list<std::string>(key, "a string");
  }
  std::vector<int64_t> integers(const char* key) const { return list<int64_t>(key, "an integer"); }
  // The tables of a [[key]] or of a list, one at least.
  void for_each(const char* key, const std::function<void(const toml::table&)>& take) const {
    const toml::array* all = table_[key].as_array();
    if (all == nullptr || all->empty() || !all->is_homogeneous(toml::node_type::table)) {
      fail(key, "must be there, one or several");
    }
    for (const toml::node& node : *all) take(*node.as_table());
  }
  const toml::table& table(const char* key) const {
    const toml::table* inner = table_[key].as_table();
    if (inner == nullptr) fail(key, "must be there: { run = ..., model = ... }");
    return *inner;
  }

 private:
  const toml::table& table_;
  std::string place_;
};

std::vector<uint64_t> seeds_of(const Keys& keys, const std::vector<uint64_t>& otherwise) {
  std::vector<uint64_t> seeds;
  for (const int64_t seed : keys.integers("seeds")) {
    if (seed < 0) keys.fail("seeds", "must not be negative");
    seeds.push_back(static_cast<uint64_t>(seed));
  }
  if (std::set(seeds.begin(), seeds.end()).size() != seeds.size()) {
    keys.fail("seeds", "has one twice");
  }
  return seeds.empty() ? otherwise : seeds;
}

// Becomes part of a file's name and of a heading.
void check_name(const Keys& keys, const std::string& name) {
  if (!is_plain_name(name)) {
    keys.fail("name",
              fmt::format("'{}' must be of letters, digits, '-', '_' and '.'", printable(name)));
  }
}

RowChoice row_choice(const toml::table& table, const std::string& place, const Sweep& sweep) {
  const Keys keys(table, place, {"run", "model", "rule", "prefix", "step", "label"});
  RowChoice choice{keys.texts("run"),       keys.texts("model"),   keys.texts("rule"),
                   keys.integers("prefix"), keys.integers("step"), keys.text_or("label", "")};
  if (choice.runs.empty()) keys.fail("run", "must be there");
  for (const std::string& name : choice.runs) {
    const bool known = std::any_of(sweep.runs.begin(), sweep.runs.end(),
                                   [&](const SweepRun& run) { return run.name == name; });
    if (!known) keys.fail("run", fmt::format("'{}' is no [[run]]", printable(name)));
  }
  return choice;
}

// Those that all runs of the table have.
std::vector<uint64_t> common_seeds(const Sweep& sweep, const SweepTable& table,
                                   const std::string& place) {
  std::map<std::string, std::vector<uint64_t>> seeds_of_run;
  for (const SweepRun& run : sweep.runs) seeds_of_run[run.name] = run.seeds;
  std::vector<uint64_t> common = seeds_of_run[table.reference.runs.front()];
  const auto keep_those_of = [&](const RowChoice& choice) {
    for (const std::string& run : choice.runs) {
      const std::vector<uint64_t>& seeds = seeds_of_run[run];
      std::erase_if(common, [&](uint64_t seed) {
        return std::find(seeds.begin(), seeds.end(), seed) == seeds.end();
      });
    }
  };
  for (const RowChoice& choice : table.rows) keep_those_of(choice);
  keep_those_of(table.reference);
  if (common.empty()) throw Error(place + ": its runs have no seed in common");
  return common;
}

}  // namespace

Sweep::Needs Sweep::needs_of(const std::string& run) const {
  Needs needs;
  for (const SweepTable& table : tables) {
    const auto add = [&](const RowChoice& choice) {
      if (std::find(choice.runs.begin(), choice.runs.end(), run) == choice.runs.end()) return;
      needs.data[table.data].insert(choice.steps.begin(), choice.steps.end());
      needs.prefixes.insert(choice.prefixes.begin(), choice.prefixes.end());
    };
    std::for_each(table.rows.begin(), table.rows.end(), add);
    add(table.reference);
  }
  return needs;
}

Sweep load_sweep(const std::filesystem::path& file) {
  const std::string name = file.string();
  const toml::table root = read_toml(file);
  const Keys keys(root, name, {"experiment", "set", "seeds", "run", "data", "table"});
  Sweep sweep;
  sweep.experiment = keys.text("experiment");
  const std::vector<std::string> of_all = keys.texts("set");
  const std::vector<uint64_t> seeds = seeds_of(keys, {1});
  std::set<std::string> names;
  keys.for_each("run", [&](const toml::table& table) {
    const Keys of_run(table, name + ": [[run]]", {"name", "set", "seeds"});
    SweepRun run{of_run.text("name"), of_all, seeds_of(of_run, seeds)};
    check_name(of_run, run.name);
    if (!names.insert(run.name).second)
      of_run.fail("name", fmt::format("'{}' is there twice", run.name));
    for (const std::string& override_text : of_run.texts("set")) {
      run.overrides.push_back(override_text);
    }
    sweep.runs.push_back(run);
  });
  names = {"train", "validation", "test"};
  if (keys.has("data")) {
    keys.for_each("data", [&](const toml::table& table) {
      const Keys of_data(table, name + ": [[data]]", {"name", "files"});
      SweepData data{of_data.text("name"), of_data.texts("files")};
      check_name(of_data, data.name);
      if (!names.insert(data.name).second) {
        of_data.fail("name", fmt::format("'{}' is there twice", data.name));
      }
      if (data.files.empty()) of_data.fail("files", "must be there");
      sweep.data.push_back(data);
    });
  }
  names.erase("train");
  const std::set<std::string> known_data = std::move(names);
  names.clear();
  keys.for_each("table", [&](const toml::table& table) {
    const Keys of_table(table, name + ": [[table]]",
                        {"name", "title", "data", "rows", "reference"});
    SweepTable wanted;
    wanted.name = of_table.text("name");
    check_name(of_table, wanted.name);
    if (!names.insert(wanted.name).second) {
      of_table.fail("name", fmt::format("'{}' is there twice", wanted.name));
    }
    const std::string place = fmt::format("{}: table {}", name, wanted.name);
    wanted.title = of_table.text_or("title", wanted.name);
    wanted.data = of_table.text_or("data", wanted.data);
    if (!known_data.contains(wanted.data)) {
      of_table.fail("data", fmt::format("'{}' is neither test nor validation nor a [[data]]",
                                        printable(wanted.data)));
    }
    of_table.for_each("rows", [&](const toml::table& rows) {
      wanted.rows.push_back(row_choice(rows, place + ": rows", sweep));
    });
    wanted.reference = row_choice(of_table.table("reference"), place + ": reference", sweep);
    wanted.seeds = common_seeds(sweep, wanted, place);
    sweep.tables.push_back(wanted);
  });
  return sweep;
}

}  // namespace smalltalk
