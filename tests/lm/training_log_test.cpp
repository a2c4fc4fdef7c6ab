// What the log makes of the figures it is given, and the rate that the MFU is held against.
#include "lm/train/training_log.hpp"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "lm/torch/gemm_rate.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

// A group of two devices of 1e9 FLOP/s each does so many FLOPs in 2 seconds.
std::vector<double> mfu_of(const std::vector<double>& flops) {
  const TemporaryFolder folder;
  TrainingLog::Options options;
  options.model = "a model";
  options.folder = folder.path();
  options.print = false;
  options.group_size = 2;
  options.flops_per_second = 1e9;
  TrainingLog log(options);
  log.start(0);
  int64_t step = 0;
  for (const double of_interval : flops) {
    LogRow row;
    row.step = ++step;
    row.num_steps = std::ssize(flops);
    row.seconds = 2;
    row.interval_steps = 1;
    row.interval_flops = of_interval;
    log.write(row);
  }
  std::vector<double> mfu;
  std::istringstream rows(read_text(metrics_file(folder.path())));
  for (std::string line; std::getline(rows, line);) {
    mfu.push_back(nlohmann::json::parse(line).at("mfu(%)"));
  }
  return mfu;
}

TEST(TrainingLog, MfuIsAShareOfTheRate) {
  EXPECT_EQ(mfu_of({1e9, 4e9}), (std::vector<double>{25, 100}));
}

// A rate that was measured too low is what the model has reached from then on.
TEST(TrainingLog, NoMfuIsAbove100) {
  EXPECT_EQ(mfu_of({1e9, 8e9, 4e9, 16e9, 4e9}), (std::vector<double>{25, 100, 50, 100, 25}));
}

TEST(GemmRate, IsThatOfTheFastestProductInTheTimeGiven) {
  const double start = now_seconds();
  const double rate = measure_gemm_rate(0.1, {});
  EXPECT_GT(rate, 1e8);
  EXPECT_LT(now_seconds() - start, 5);
  DeviceConfig given;
  given.flops_per_second = 5;
  EXPECT_EQ(device_flops_per_second(given), 5);
}

}  // namespace
}  // namespace smalltalk
