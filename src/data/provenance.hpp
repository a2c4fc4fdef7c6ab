// How provenance is stored. Private to src/data.
#pragma once

#include "hdf5_file.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/data/shard_file.hpp"

namespace smalltalk {

inline constexpr const char* kScoreFormat = "smalltalk scores";
inline constexpr const char* kScoreBlockFormat = "smalltalk score block";
inline constexpr const char* kBlockHashFormat = "smalltalk block hashes";
inline constexpr const char* kOrderFormat = "smalltalk order";

inline void write_provenance(Hdf5File& file, const Provenance& provenance) {
  for (const auto& [name, value] : provenance) {
    for (const auto* ours : {"format", "version", "method", "kept_sequences", "content_hash"}) {
      ST_CHECK(name != ours);
    }
    file.write_text_attribute(name, value);
  }
}

}  // namespace smalltalk
