// What a mixture is made of, as its results and its exports name it.
#pragma once

#include <nlohmann/json.hpp>

#include "smalltalk/mixture/run/provenance.hpp"

namespace smalltalk {

inline nlohmann::json provenance_json(const MixtureParts& parts) {
  return {{"experiment", parts.experiment}, {"tokenizer", parts.tokenizer},
          {"tokens", parts.tokens},         {"routers", parts.routers},
          {"shards", parts.shards},         {"prefix_tokens", parts.prefix_tokens},
          {"models", parts.models}};
}

}  // namespace smalltalk
