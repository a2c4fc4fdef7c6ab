// Writes an event file for tests/lm/test_peer_tensorboard.py: dump_events FOLDER START STEP...
// Point `step` of the tags "loss" and "mfu(%)" is step / 4 + START and step.
#include <cstdlib>

#include "lm/train/tensorboard.hpp"

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const int64_t start = std::atoll(argv[2]);
  smalltalk::TensorBoardWriter writer(argv[1], start);
  for (int i = 3; i < argc; ++i) {
    const auto step = std::atoll(argv[i]);
    const auto value = static_cast<double>(step);
    writer.write(step, 1.7e9 + value,
                 {{"loss", value / 4 + static_cast<double>(start)}, {"mfu(%)", value}});
  }
  return 0;
}
