#include "mixture/routing/round_records.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"

namespace smalltalk {

bool RoundRecords::exists(int64_t round) const {
  return std::filesystem::exists(layout_.round_record(round));
}

nlohmann::json RoundRecords::read(int64_t round) const {
  const std::filesystem::path path = layout_.round_record(round);
  try {
    return parse_json(read_text(path), path.string());
  } catch (const Error& error) {
    throw Error(fmt::format("{}: remove {} and {} to train the routers anew", error.what(),
                            path.parent_path().string(), layout_.routers_folder().string()));
  }
}

void RoundRecords::write(int64_t round, const nlohmann::json& record) const {
  write_text_atomically(layout_.round_record(round), record.dump(2) + "\n");
}

void RoundRecords::add_seconds(int64_t round, double seconds) const {
  nlohmann::json record = read(round);
  nlohmann::json& line = record.at("line");
  line["seconds"] = line.value("seconds", 0.0) + seconds;
  write(round, record);
  std::string log;
  for (int64_t r = 1; r <= round; ++r) {
    nlohmann::json its_line = read(r).at("line");
    its_line.emplace("seconds", 0.0);  // unknown of a round that died behind its last step
    log += its_line.dump() + "\n";
  }
  write_text_atomically(layout_.routing_log(), log);
}

}  // namespace smalltalk
