// What is known of each round of the EM, a file each, and the log that is written from these: one
// line a round, whatever was started how often. Private to mixture.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk {

// A record: "line", that of the log, and from round 2 on "probe_experts".
class RoundRecords {
 public:
  explicit RoundRecords(const RunLayout& layout) : layout_(layout) {}

  bool exists(int64_t round) const;
  nlohmann::json read(int64_t round) const;
  void write(int64_t round, const nlohmann::json& record) const;
  // To those that the round has taken so far. Writes the log.
  void add_seconds(int64_t round, double seconds) const;

 private:
  const RunLayout& layout_;
};

}  // namespace smalltalk
