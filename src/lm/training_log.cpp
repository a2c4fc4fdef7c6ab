#include "training_log.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "device.hpp"
#include "smalltalk/core/error.hpp"
#include "smalltalk/core/log.hpp"
#include "smalltalk/core/run_folder.hpp"

namespace smalltalk {
namespace {

constexpr double kGibibyte = 1024.0 * 1024 * 1024;

DeviceMemory process_memory() {
  return {
      static_cast<double>(peak_memory_bytes()),
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE))};
}

std::string with_commas(int64_t value) {
  const std::string digits = std::to_string(value);
  std::string result;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) result.push_back(',');
    result.push_back(digits[i]);
  }
  return result;
}

}  // namespace

void TrainingLog::rewind(int64_t step) const {
  if (file_.empty() || !std::filesystem::exists(file_)) return;
  std::istringstream old(read_text(file_));
  std::string kept, line;
  while (std::getline(old, line)) {
    const auto row = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (row.is_object() && row.value("step", step + 1) <= step) kept += line + "\n";
  }
  write_text_atomically(file_, kept);
}

void TrainingLog::write(const LogRow& row, bool print) const {
  const DeviceMemory memory = cuda_ ? device_memory() : process_memory();
  const double device_seconds = std::max(row.seconds, 1e-9) * group_size_;
  const double tokens_per_second = static_cast<double>(row.interval_tokens) / device_seconds;
  const double flops_per_second = row.interval_flops / device_seconds;
  // MFU: the share of the rate that the experiment gives for the device, device.flops_per_second.
  const double mfu = 100 * flops_per_second / flops_per_second_;
  const auto interval_steps = static_cast<double>(std::max<int64_t>(row.interval_steps, 1));
  const double eta = row.seconds / interval_steps * static_cast<double>(row.num_steps - row.step);
  if (print) {
    log_info(fmt::format(
        "{}  step: {:2}  loss: {:8.5f}  grad_norm: {:7.4f}  memory: {:5.2f}GiB({:.2f}%)  tps: {}  "
        "tflops: {:.2f}  mfu: {:.2f}%  lr: {:.2e}  eta: {}",
        model_, row.step, row.loss, row.gradient_norm, memory.peak_bytes / kGibibyte,
        100 * memory.peak_bytes / memory.total_bytes,
        with_commas(static_cast<int64_t>(tokens_per_second)), flops_per_second / 1e12, mfu, row.lr,
        human_duration(eta)));
  }
  if (file_.empty()) return;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  nlohmann::ordered_json json;
  json["step"] = row.step;
  json["time"] = std::chrono::duration<double>(now).count();
  json["tokens"] = row.tokens;
  json["model"] = model_;
  json["lr"] = row.lr;
  json["loss_metrics/global_avg_loss"] = row.loss;
  json["loss_metrics/global_max_loss"] = row.max_loss;
  json["grad_norm"] = row.gradient_norm;
  json["throughput(tps)"] = tokens_per_second;
  json["tflops"] = flops_per_second / 1e12;
  json["mfu(%)"] = mfu;
  json["time_metrics/end_to_end(s)"] = row.seconds / interval_steps;
  json["time_metrics/data_loading(s)"] = row.data_seconds / interval_steps;
  json["memory/max_active(GiB)"] = memory.peak_bytes / kGibibyte;
  json["eta(s)"] = eta;
  std::filesystem::create_directories(file_.parent_path());
  std::ofstream out(file_, std::ios::app);
  out << json.dump() << "\n" << std::flush;
  if (!out) throw Error("cannot write '" + file_.string() + "': is the disk full?");
}

}  // namespace smalltalk
