#include "smalltalk/data/score_store.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "hdf5_file.hpp"
#include "mapped_dataset.hpp"
#include "provenance.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kBlockScores = "scores";
constexpr int64_t kMaxBlock = int64_t{1} << 40;  // sequences: sums of a few blocks do not overflow
constexpr const char* kBlocks = "blocks";

// Routers that were scored together.
struct RouterSet {
  std::vector<std::string> routers;
  std::vector<int64_t> prefixes;
  int64_t seq_length = 0;
  int64_t block_sequences = 0;

  Json to_json() const {
    return {{"routers", routers},
            {"prefixes", prefixes},
            {"seq_length", seq_length},
            {"block_sequences", block_sequences}};
  }
  std::string name() const { return hash_text(to_json().dump()); }
};

// What `read` gives; nothing if the file is not there, or if it is damaged, with a warning.
template <typename Read>
auto read_if_whole(const fs::path& path, Read&& read) -> decltype(read(path)) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return {};
  try {
    return read(path);
  } catch (const SystemError&) {
    throw;
  } catch (const std::exception& error) {
    log_warning(fmt::format("{}: taken as missing, what it held is made anew ({})", path.string(),
                            error.what()));
    return {};
  }
}

// A plane [rows, routers of the set], mapped.
struct Plane {
  std::shared_ptr<const MappedDataset> mapped;
  std::span<const float> scores;
};

}  // namespace

struct ScoreStore::Impl {
  fs::path folder;
  int64_t seq_length = 0;
  int64_t block_sequences = 0;
  std::map<std::string, RouterSet> sets;  // by name

  fs::path block_file(const std::string& set, int64_t block) const {
    return folder / set / fmt::format("block-{:08}.h5", block);
  }

  fs::path hashes_file(const std::string& content_hash) const {
    return folder / ("tokens-" + content_hash + ".h5");
  }

  void list_sets() {
    for (const auto& entry : fs::directory_iterator(folder)) {
      if (!entry.is_directory() || sets.contains(entry.path().filename().string())) continue;
      const auto set = read_if_whole(entry.path() / "set.json", [&](const fs::path& path) {
        const Json json = parse_json<Json>(read_text(path), path.string());
        RouterSet found;
        json.at("routers").get_to(found.routers);
        json.at("prefixes").get_to(found.prefixes);
        json.at("seq_length").get_to(found.seq_length);
        json.at("block_sequences").get_to(found.block_sequences);
        if (found.name() != entry.path().filename()) throw Error("not the set of its folder");
        return std::optional(found);
      });
      if (set && set->seq_length == seq_length && set->block_sequences == block_sequences) {
        sets.emplace(set->name(), *set);
      }
    }
  }

  // Sets that have the prefix and any of the routers, first the one of exactly these routers.
  std::vector<const RouterSet*> sets_with(std::span<const std::string> routers,
                                          int64_t prefix) const {
    std::vector<const RouterSet*> found;
    for (const auto& [name, set] : sets) {
      const bool has_prefix =
          std::find(set.prefixes.begin(), set.prefixes.end(), prefix) != set.prefixes.end();
      const bool has_router =
          std::any_of(routers.begin(), routers.end(), [&set = set](const std::string& router) {
            return std::find(set.routers.begin(), set.routers.end(), router) != set.routers.end();
          });
      if (has_prefix && has_router) found.push_back(&set);
    }
    std::stable_partition(found.begin(), found.end(), [&](const RouterSet* set) {
      return std::equal(set->routers.begin(), set->routers.end(), routers.begin(), routers.end());
    });
    return found;
  }

  std::optional<Plane> open_plane(const StoredBlock& wanted, const RouterSet& set,
                                  int64_t prefix) const {
    const std::string name = set.name();
    return read_if_whole(
        block_file(name, wanted.block), [&](const fs::path& path) -> std::optional<Plane> {
          const Hdf5File file = Hdf5File::open(path);
          file.require_format(kScoreBlockFormat);
          if (file.text_attribute("set") != name ||
              file.integer_attribute("first_sequence") != wanted.block * block_sequences) {
            throw Error(path.string() + ": is not the block of its place");
          }
          const auto prefixes = static_cast<int64_t>(set.prefixes.size());
          const auto routers = static_cast<int64_t>(set.routers.size());
          if (file.text_attribute("tokens") != fmt::format("{:016x}", wanted.tokens_hash) ||
              file.shape(kBlockScores) != std::vector<int64_t>{prefixes, wanted.rows, routers}) {
            return {};  // of other tokens, or before the block grew
          }
          if (!file.has_type<float>(kBlockScores))
            throw Error(path.string() + ": is not of float32");
          Plane plane;
          plane.mapped = std::make_shared<const MappedDataset>(file, kBlockScores);
          const auto place =
              std::find(set.prefixes.begin(), set.prefixes.end(), prefix) - set.prefixes.begin();
          const int64_t size = wanted.rows * routers;
          plane.scores = plane.mapped->values<float>(place * size, size);
          return plane;
        });
  }

  // Where the scores of one router lie.
  struct Column {
    const RouterSet* set = nullptr;  // none: nowhere
    size_t index = 0;                // in the set
    Plane plane;
  };

  std::vector<Column> find_columns(const StoredBlock& wanted, std::span<const std::string> routers,
                                   int64_t prefix) const {
    std::vector<Column> columns(routers.size());
    for (const RouterSet* set : sets_with(routers, prefix)) {
      std::vector<std::pair<size_t, size_t>> gains;  // wanted router, column of the set
      for (size_t i = 0; i < routers.size(); ++i) {
        const auto place = std::find(set->routers.begin(), set->routers.end(), routers[i]);
        if (columns[i].set == nullptr && place != set->routers.end()) {
          gains.emplace_back(i, place - set->routers.begin());
        }
      }
      if (gains.empty()) continue;
      const std::optional<Plane> plane = open_plane(wanted, *set, prefix);
      if (!plane) continue;
      for (const auto& [i, index] : gains) columns[i] = {set, index, *plane};
    }
    return columns;
  }
};

ScoreStore::ScoreStore(fs::path folder, int64_t seq_length, int64_t block_sequences)
    : impl_(std::make_unique<Impl>()) {
  ST_CHECK(seq_length >= 1 && block_sequences >= 1);
  impl_->folder = std::move(folder);
  impl_->seq_length = seq_length;
  require_writable(impl_->folder);
  const fs::path choice = impl_->folder / "store.json";
  const auto read_choice = [&] {
    return read_if_whole(choice, [](const fs::path& path) {
      const Json json = parse_json<Json>(read_text(path), path.string());
      const auto chosen = json.at("block_sequences").get<int64_t>();
      if (chosen < 1 || chosen > kMaxBlock) throw Error("block_sequences is no size of a block");
      return std::optional(chosen);
    });
  };
  if (!read_choice()) {
    write_text_atomically(choice, Json{{"block_sequences", block_sequences}}.dump(2) + "\n");
  }
  // Read again: somebody else may have written it, too.
  impl_->block_sequences = read_choice().value_or(block_sequences);
  impl_->list_sets();
}

ScoreStore::~ScoreStore() = default;
ScoreStore::ScoreStore(ScoreStore&&) noexcept = default;

int64_t ScoreStore::block_sequences() const { return impl_->block_sequences; }

std::vector<size_t> ScoreStore::missing_routers(const StoredBlock& block,
                                                std::span<const std::string> routers,
                                                int64_t prefix) const {
  const std::vector<Impl::Column> columns = impl_->find_columns(block, routers, prefix);
  std::vector<size_t> missing;
  for (size_t i = 0; i < columns.size(); ++i) {
    if (columns[i].set == nullptr) missing.push_back(i);
  }
  return missing;
}

void ScoreStore::write(const StoredBlock& block, std::span<const std::string> routers,
                       std::span<const int64_t> prefixes, std::span<const float> scores) {
  ST_CHECK(block.block >= 0 && block.rows >= 1 && block.rows <= impl_->block_sequences);
  const auto num_prefixes = static_cast<int64_t>(prefixes.size());
  const auto num_routers = static_cast<int64_t>(routers.size());
  ST_CHECK(static_cast<int64_t>(scores.size()) == num_prefixes * block.rows * num_routers &&
           !scores.empty());
  const RouterSet set = {{routers.begin(), routers.end()},
                         {prefixes.begin(), prefixes.end()},
                         impl_->seq_length,
                         impl_->block_sequences};
  const std::string name = set.name();
  if (!impl_->sets.contains(name)) {
    write_text_atomically(impl_->folder / name / "set.json", set.to_json().dump(2) + "\n");
    impl_->sets.emplace(name, set);
  }
  const fs::path path = impl_->block_file(name, block.block);
  write_atomically(path, [&](const fs::path& temporary) {
    Hdf5File file = Hdf5File::create(temporary, path);
    file.write_format(kScoreBlockFormat);
    file.write_integer_attribute("first_sequence", block.block * impl_->block_sequences);
    file.write_text_attribute("set", name);
    file.write_text_attribute("tokens", fmt::format("{:016x}", block.tokens_hash));
    file.write<float>(kBlockScores, scores, {num_prefixes, block.rows, num_routers});
    file.close();
  });
}

StoredScores ScoreStore::read(const StoredBlock& block, std::span<const std::string> routers,
                              int64_t prefix) {
  const auto is_missing = [](const Impl::Column& column) { return column.set == nullptr; };
  std::vector<Impl::Column> columns = impl_->find_columns(block, routers, prefix);
  if (std::any_of(columns.begin(), columns.end(), is_missing)) {
    impl_->list_sets();  // another process may have brought one
    columns = impl_->find_columns(block, routers, prefix);
  }
  const auto missing = std::find_if(columns.begin(), columns.end(), is_missing);
  if (columns.empty() || missing != columns.end()) {
    throw Error(fmt::format(
        "{}: block {} has no scores of router {} for a prefix of {} tokens; score it, then read",
        impl_->folder.string(), block.block,
        columns.empty() ? "(none)" : routers[static_cast<size_t>(missing - columns.begin())],
        prefix));
  }
  StoredScores stored;
  stored.block.first_sequence = static_cast<uint64_t>(block.block * impl_->block_sequences);
  const Impl::Column& first = columns.front();
  if (std::equal(first.set->routers.begin(), first.set->routers.end(), routers.begin(),
                 routers.end())) {
    stored.block.values = first.plane.scores;
    stored.memory = first.plane.mapped;
    return stored;
  }
  const size_t width = columns.size();
  const auto values = std::make_shared<std::vector<float>>(static_cast<size_t>(block.rows) * width);
  for (size_t row = 0; row < static_cast<size_t>(block.rows); ++row) {
    for (size_t i = 0; i < width; ++i) {
      const Impl::Column& column = columns[i];
      (*values)[row * width + i] =
          column.plane.scores[row * column.set->routers.size() + column.index];
    }
  }
  stored.block.values = *values;
  stored.memory = values;
  return stored;
}

std::optional<std::vector<uint64_t>> ScoreStore::read_block_hashes(
    const std::string& content_hash) const {
  return read_if_whole(impl_->hashes_file(content_hash),
                       [&](const fs::path& path) -> std::optional<std::vector<uint64_t>> {
                         const Hdf5File file = Hdf5File::open(path);
                         file.require_format(kBlockHashFormat);
                         if (file.integer_attribute("seq_length") != impl_->seq_length ||
                             file.integer_attribute("block_sequences") != impl_->block_sequences) {
                           return {};
                         }
                         return file.read<uint64_t>(kBlocks);
                       });
}

void ScoreStore::write_block_hashes(const std::string& content_hash,
                                    std::span<const uint64_t> hashes) const {
  const fs::path path = impl_->hashes_file(content_hash);
  write_atomically(path, [&](const fs::path& temporary) {
    Hdf5File file = Hdf5File::create(temporary, path);
    file.write_format(kBlockHashFormat);
    file.write_integer_attribute("seq_length", impl_->seq_length);
    file.write_integer_attribute("block_sequences", impl_->block_sequences);
    file.write<uint64_t>(kBlocks, hashes);
    file.close();
  });
}

}  // namespace smalltalk
