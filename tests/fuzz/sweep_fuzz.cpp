#include "fuzz.hpp"
#include "smalltalk/core/experiment/sweep.hpp"

extern "C" int fuzz_sweep(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  const auto path = fuzz::write_file("x.toml", fuzz::text_of(data, size));
  Sweep sweep;
  if (!fuzz::result_or_error("x.toml", [&] { sweep = load_sweep(path); })) return 0;
  for (const SweepRun& run : sweep.runs) sweep.needs_of(run.name);
  for (const SweepTable& table : sweep.tables) {
    fuzz::require(!table.rows.empty() && !table.seeds.empty(), "a table without rows or seeds");
  }
  return 0;
}
