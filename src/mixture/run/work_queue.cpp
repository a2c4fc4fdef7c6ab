#include "smalltalk/mixture/run/work_queue.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/stop.hpp"

namespace smalltalk {

bool work_off(const RunLayout& layout, const std::string& start, const std::vector<Work>& pieces,
              WorkPart part) {
  const std::string me = fmt::format("process {}", getpid());
  for (size_t i = 0; i < pieces.size(); ++i) {
    const Work& piece = pieces[i];
    if (static_cast<int64_t>(i) % part.parts != part.part) continue;
    if (piece.complete() || !piece.ready()) continue;
    stop_if_asked();
    if (claim(layout.queue(start, piece.name), me)) piece.compute();
  }
  if (part.parts > 1) return false;
  if (!std::ranges::all_of(pieces, [](const Work& piece) { return piece.complete(); })) {
    return false;
  }
  return claim(layout.queue(start, "results"), me);
}

}  // namespace smalltalk
