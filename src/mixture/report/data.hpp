// What the report is made of, read once.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "smalltalk/mixture/run/kinds.hpp"

namespace smalltalk::report {

struct Point {
  double x = 0;
  double y = 0;
};

// The training loss of one model, as logged, ascending in x.
struct LossCurve {
  const ModelKind* kind = nullptr;
  int expert = -1;            // of a model that consists of several
  std::vector<Point> points;  // x: tokens this one has seen, y: nats per token
};

struct RunData {
  std::filesystem::path folder;
  std::string name;  // of the run, else of its folder
  nlohmann::json results = nullptr;
  nlohmann::json sharding = nullptr;
  nlohmann::json seconds = nullptr;
  nlohmann::json comparison = nullptr;  // of the test split
  nlohmann::json tasks = nullptr;
  std::vector<nlohmann::json> rounds;  // ascending
  std::vector<LossCurve> curves;
  std::string experiment;             // TOML text
  std::vector<std::string> problems;  // files that are there and cannot be read
};

// Error only if `run` is not a folder.
RunData load_run(const std::filesystem::path& run);

// The parsed file; null if it is not there; null and a problem if it cannot be read.
nlohmann::json read_json(const std::filesystem::path& path, std::vector<std::string>& problems);
// The last part of its path, "." and the like resolved.
std::string folder_name(const std::filesystem::path& folder);

// Running mean over `window` points (odd, centred; at the start only as wide as there are points
// on both sides, at the end only the left half).
std::vector<Point> smooth(const std::vector<Point>& points, int window);
// The mean of several curves at `count` places of the range that all of them cover.
std::vector<Point> mean_curve(const std::vector<std::vector<Point>>& curves, int count);
// At most `count` of the points, evenly, first and last among them.
std::vector<Point> thin_out(const std::vector<Point>& points, size_t count);

}  // namespace smalltalk::report
