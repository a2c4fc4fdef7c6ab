#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {

using nlohmann::json;

namespace {

std::filesystem::path ledger_file(const std::filesystem::path& folder, const std::string& start,
                                  int rank) {
  return folder / fmt::format("{}-rank-{}.json", start, rank);
}

}  // namespace

void write_ledger(const std::filesystem::path& folder, const std::string& start, int rank) {
  json entries = json::array();
  int64_t exchanges = 0;
  for (const LedgerEntry& entry : ledger_entries()) {
    entries.push_back({{"phase", to_string(entry.phase)},
                       {"communicator", entry.communicator},
                       {"call", entry.call},
                       {"calls", entry.calls},
                       {"bytes", entry.bytes}});
    if (entry.phase == Phase::route && entry.call == "MPI_Alltoallv") exchanges += entry.calls;
  }
  const LedgerOutside outside = ledger_outside(after_shards);
  const json ledger = {{"rank", rank},
                       {"entries", entries},
                       {"collectives", exchanges},
                       {"world_calls_after_shards", outside.calls},
                       {"world_bytes_after_shards", outside.bytes}};
  write_text_atomically(ledger_file(folder, start, rank), ledger.dump(2) + "\n");
}

void count_in_ledger(const std::filesystem::path& folder, const std::string& start, int rank,
                     const std::function<void()>& body) {
  const auto close = [&] {
    write_ledger(folder, start, rank);
    const LedgerOutside outside = ledger_outside(after_shards);
    if (outside.bytes == 0) return;
    throw Error(fmt::format("sent {} past its own group after the shards: {} (see {})",
                            human_bytes(static_cast<double>(outside.bytes)),
                            fmt::join(outside.what, ", "),
                            ledger_file(folder, start, rank).string()));
  };
  try {
    body();
  } catch (const Stopped&) {
    close();
    throw;
  }
  close();
}

}  // namespace smalltalk
