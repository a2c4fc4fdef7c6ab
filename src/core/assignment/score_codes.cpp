#include "smalltalk/core/assignment/score_codes.hpp"

#include <algorithm>
#include <cmath>
#include <string>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {

namespace {
constexpr double kLargestCode = 65535;
}

ScoreCoding find_score_coding(std::span<const float> scores, const HostCollectives& ranks) {
  constexpr double kNone = -1e300;
  double ends[2] = {kNone, kNone};  // -lowest, highest
  for (const float score : scores) {
    if (!std::isfinite(score)) {
      throw Error("a score is " + std::to_string(score) +
                  "; scores must be finite (has a router diverged?)");
    }
    ends[0] = std::max(ends[0], -static_cast<double>(score));
    ends[1] = std::max(ends[1], static_cast<double>(score));
  }
  ranks.all_reduce_max(ends);
  if (ends[1] == kNone || -ends[0] == ends[1]) return {ends[1] == kNone ? 0 : ends[1], 1};
  return {-ends[0], (ends[1] + ends[0]) / kLargestCode};
}

void encode_scores(std::span<const float> scores, const ScoreCoding& coding,
                   std::span<uint16_t> codes) {
  ST_CHECK(scores.size() == codes.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const double code = (static_cast<double>(scores[i]) - coding.lowest) / coding.step;
    codes[i] = static_cast<uint16_t>(std::clamp(std::floor(code + 0.5), 0.0, kLargestCode));
  }
}

}  // namespace smalltalk
