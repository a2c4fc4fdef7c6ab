#include "mixture/report/data.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>

#include "mixture/report/format.hpp"
#include "smalltalk/core/experiment/experiment.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk::report {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// The rows of a JSON-lines file by the number under `key`. A run that was stopped and resumed
// repeats rows, of which the last holds, and may have left half a line.
std::map<int64_t, json> read_rows(const fs::path& path, const std::string& key,
                                  std::vector<std::string>& problems) {
  std::map<int64_t, json> rows;
  if (!fs::exists(path)) return rows;
  std::string text;
  try {
    text = read_text(path);
  } catch (const Error& error) {
    problems.push_back(error.what());
    return rows;
  }
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    std::optional<json> row = parse_json_row(line);
    if (!row) continue;
    const json& id = at(*row, key);
    if (id.is_number_integer()) rows[id.get<int64_t>()] = std::move(*row);
  }
  return rows;
}

void add_curve(RunData& data, const fs::path& metrics, const ModelKind& kind, int expert) {
  LossCurve curve{&kind, expert, {}};
  for (const auto& [step, row] : read_rows(metrics, "step", data.problems)) {
    // The key holds a slash, so it is not a path for number_at().
    const auto loss = row.find("loss_metrics/global_avg_loss");
    const auto tokens = number_at(row, "tokens");
    if (loss == row.end() || !loss->is_number() || !tokens) continue;
    if (const auto value = loss->get<double>(); std::isfinite(value)) {
      curve.points.push_back({*tokens, value});
    }
  }
  std::sort(curve.points.begin(), curve.points.end(),
            [](const Point& a, const Point& b) { return a.x < b.x; });
  if (!curve.points.empty()) data.curves.push_back(std::move(curve));
}

void add_curves(RunData& data, const RunLayout& layout, const ModelKind& kind) {
  if (!kind.one_for_each_expert) return add_curve(data, layout.metrics(kind.unit(0)), kind, -1);
  for (int e = 0; fs::is_directory(layout.model(kind.unit(e))); ++e) {
    add_curve(data, layout.metrics(kind.unit(e)), kind, e);
  }
}

// Only a heading hangs on the name: a file that is no experiment of this version has none.
std::string name_in(const fs::path& experiment) {
  try {
    return load_experiment(experiment, {}).name;
  } catch (const Error&) {
    return {};
  }
}

double value_at(const std::vector<Point>& points, double x) {
  const auto after = std::lower_bound(points.begin(), points.end(), x,
                                      [](const Point& p, double at) { return p.x < at; });
  if (after == points.begin()) return points.front().y;
  if (after == points.end()) return points.back().y;
  const Point& left = *(after - 1);
  const double t = (x - left.x) / (after->x - left.x);
  return left.y + t * (after->y - left.y);
}

}  // namespace

json read_json(const fs::path& path, std::vector<std::string>& problems) {
  if (!fs::exists(path)) return nullptr;
  try {
    return parse_json(read_text(path), path.filename().string());
  } catch (const Error& error) {
    problems.push_back(path.filename().string() + " cannot be read: " + error.what());
    return nullptr;
  }
}

std::string folder_name(const fs::path& folder) {
  const fs::path path = fs::absolute(folder).lexically_normal();
  return (path.has_filename() ? path : path.parent_path()).filename().string();
}

RunData load_run(const fs::path& run) {
  if (!fs::is_directory(run)) throw Error(run.string() + ": not a run folder");
  const RunLayout layout{run};
  RunData data;
  data.folder = run;
  data.results = read_json(layout.results(), data.problems);
  data.sharding = read_json(layout.sharding_report(), data.problems);
  data.seconds = read_json(layout.seconds(), data.problems);
  data.comparison = read_json(layout.comparison("test"), data.problems);
  data.tasks = read_json(layout.task_results(), data.problems);
  for (auto& [round, row] : read_rows(layout.routing_log(), "round", data.problems)) {
    data.rounds.push_back(row);
  }
  for (const ModelKind& kind : model_kinds()) {
    if (kind.role != Role::router) add_curves(data, layout, kind);
  }
  if (fs::exists(layout.experiment())) {
    try {
      data.experiment = read_text(layout.experiment());
    } catch (const Error& error) {
      data.problems.emplace_back(error.what());
    }
  }
  data.name = text_at(data.results, "name");
  if (data.name.empty()) data.name = name_in(layout.experiment());
  if (data.name.empty()) data.name = folder_name(run);
  return data;
}

std::vector<Point> smooth(const std::vector<Point>& points, int window) {
  const auto n = static_cast<int64_t>(points.size());
  std::vector<Point> out;
  out.reserve(points.size());
  for (int64_t i = 0; i < n; ++i) {
    // Never further to the right than to the left: where the curve falls steeply, at its start,
    // that would show losses that were only reached later.
    const int64_t left = std::min<int64_t>(window / 2, i);
    const int64_t right = std::min(left, n - 1 - i);
    double sum = 0;
    for (int64_t k = i - left; k <= i + right; ++k) sum += points[static_cast<size_t>(k)].y;
    out.push_back({points[static_cast<size_t>(i)].x, sum / static_cast<double>(left + right + 1)});
  }
  return out;
}

std::vector<Point> mean_curve(const std::vector<std::vector<Point>>& curves, int count) {
  if (curves.empty()) return {};
  double first = curves[0].front().x;
  double last = curves[0].back().x;
  for (const auto& curve : curves) {
    first = std::max(first, curve.front().x);
    last = std::min(last, curve.back().x);
  }
  std::vector<Point> out;
  for (int i = 0; i < count && last >= first; ++i) {
    const double x = first + (last - first) * i / std::max(1, count - 1);
    double sum = 0;
    for (const auto& curve : curves) sum += value_at(curve, x);
    out.push_back({x, sum / static_cast<double>(curves.size())});
  }
  return out;
}

std::vector<Point> thin_out(const std::vector<Point>& points, size_t count) {
  if (points.size() <= count || count < 2) return points;
  std::vector<Point> out;
  for (size_t i = 0; i < count; ++i) out.push_back(points[i * (points.size() - 1) / (count - 1)]);
  return out;
}

}  // namespace smalltalk::report
