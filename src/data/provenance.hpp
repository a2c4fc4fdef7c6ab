// Formats with provenance, and how it is stored. Private to src/data.
#pragma once

#include "hdf5_file.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/data/shard_file.hpp"

namespace smalltalk {

inline constexpr const char* kShardFormat = "smalltalk shards";
inline constexpr const char* kScoreFormat = "smalltalk scores";

inline void write_provenance(Hdf5File& file, const Provenance& provenance) {
  for (const auto& [name, value] : provenance) {
    ST_CHECK(name != "format" && name != "version");
    file.write_text_attribute(name, value);
  }
}

}  // namespace smalltalk
