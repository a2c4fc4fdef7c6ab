// Scores in 16 bits, as they travel between ranks (2 bytes a score, SmallTalk LM, appendix A.4). A
// half float would resolve only 0.5 nats at -1000; codes divide the range that a chunk really has
// into 65,535 equal steps, which keeps the order and, above all, differences between routers.
#pragma once

#include <cstdint>
#include <span>

#include "smalltalk/core/system/collectives.hpp"

namespace smalltalk {

// Code c stands for lowest + step * c nats.
struct ScoreCoding {
  double lowest = 0;
  double step = 1;
};

// The range of the scores of all ranks. Collective: the coding depends on the chunk alone, not on
// how it is spread over ranks. Error if a score is not finite.
ScoreCoding find_score_coding(std::span<const float> scores, const HostCollectives& ranks = {});

// codes[i] <- the nearest code of scores[i].
void encode_scores(std::span<const float> scores, const ScoreCoding& coding,
                   std::span<uint16_t> codes);

}  // namespace smalltalk
