#include "lm/train/training_log.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lm/torch/device.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parse_json.hpp"
#include "smalltalk/lm/model/model_folder.hpp"

namespace smalltalk {
namespace {

constexpr double kGibibyte = 1024.0 * 1024 * 1024;

DeviceMemory process_memory() {
  DeviceMemory memory;
  memory.peak_bytes = static_cast<double>(peak_memory_bytes());
  memory.total_bytes =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  return memory;
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

void TrainingLog::start(int64_t step) {
  if (started_ || options_.folder.empty()) return;
  started_ = true;
  const std::filesystem::path file = metrics_file(options_.folder);
  if (std::filesystem::exists(file)) {
    std::istringstream old(read_text(file));
    std::string kept, line;
    while (std::getline(old, line)) {
      const auto row = parse_json_row(line);
      if (!row || !row->is_object() || !row->contains("step")) continue;
      const nlohmann::json& of_row = row->at("step");
      if (of_row.is_number_integer() && of_row.get<int64_t>() <= step) kept += line + "\n";
    }
    write_text_atomically(file, kept);
  }
  if (options_.tensorboard) tensorboard_.emplace(tensorboard_folder(options_.folder), step);
}

void TrainingLog::write(const LogRow& row) {
  const DeviceMemory memory = options_.cuda ? cuda_device().memory() : process_memory();
  const double device_seconds = std::max(row.seconds, 1e-9) * options_.group_size;
  const double tokens_per_second = static_cast<double>(row.interval_tokens) / device_seconds;
  const double flops_per_second = row.interval_flops / device_seconds;
  // MFU: the share of the rate that the device is given, or was measured to reach. What the model
  // reaches the device can do.
  options_.flops_per_second = std::max(options_.flops_per_second, flops_per_second);
  const double mfu = 100 * flops_per_second / options_.flops_per_second;
  const auto interval_steps = static_cast<double>(std::max<int64_t>(row.interval_steps, 1));
  const double eta = row.seconds / interval_steps * static_cast<double>(row.num_steps - row.step);
  if (options_.print) {
    log_info(fmt::format(
        "{}  step: {:2}  loss: {:8.5f}  grad_norm: {:7.4f}  memory: {:5.2f}GiB({:.2f}%)  tps: {}  "
        "tflops: {:.2f}  mfu: {:.2f}%  lr: {:.2e}  eta: {}{}",
        options_.model, row.step, row.loss, row.gradient_norm, memory.peak_bytes / kGibibyte,
        100 * memory.peak_bytes / memory.total_bytes,
        with_commas(static_cast<int64_t>(tokens_per_second)), flops_per_second / 1e12, mfu, row.lr,
        human_duration(eta),
        outliers_ == 0 ? ""
                       : fmt::format("  outliers: {}{}", outliers_,
                                     outliers_skipped_ ? " (updates skipped)" : "")));
    outliers_ = 0;
  }
  append(row.step, {{"tokens", row.tokens},
                    {"lr", row.lr},
                    {"loss_metrics/global_avg_loss", row.loss},
                    {"loss_metrics/global_max_loss", row.max_loss},
                    {"grad_norm", row.gradient_norm},
                    {"throughput(tps)", tokens_per_second},
                    {"tflops", flops_per_second / 1e12},
                    {"mfu(%)", mfu},
                    {"time_metrics/end_to_end(s)", row.seconds / interval_steps},
                    {"time_metrics/data_loading(s)", row.phases.data / interval_steps},
                    {"time_metrics/forward(s)", row.phases.forward / interval_steps},
                    {"time_metrics/backward(s)", row.phases.backward / interval_steps},
                    {"time_metrics/communication(s)", row.phases.communication / interval_steps},
                    {"time_metrics/optimizer(s)", row.phases.optimizer / interval_steps},
                    {"memory/max_active(GiB)", memory.peak_bytes / kGibibyte},
                    {"memory/reserved(GiB)", memory.reserved_bytes / kGibibyte},
                    {"eta(s)", eta}});
}

void TrainingLog::write(const OutlierRow& row) {
  ++outliers_;
  outliers_skipped_ = row.skipped;
  append(row.step, {{"outlier/loss", row.loss},
                    {"outlier/loss_zscore", row.loss_zscore},
                    {"outlier/grad_norm", row.gradient_norm},
                    {"outlier/grad_norm_zscore", row.gradient_norm_zscore},
                    {"outlier/skipped", row.skipped ? 1 : 0}});
}

void TrainingLog::append(int64_t step, nlohmann::ordered_json row) {
  if (options_.folder.empty()) return;
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  const double time = std::chrono::duration<double>(since_epoch).count();
  Scalars scalars;
  for (const auto& [key, value] : row.items()) scalars.emplace_back(key, value.get<double>());
  if (tensorboard_) tensorboard_->write(step, time, scalars);
  nlohmann::ordered_json line = {{"step", step}, {"time", time}, {"model", options_.model}};
  line.update(row);
  const std::filesystem::path file = metrics_file(options_.folder);
  create_folder(options_.folder);
  append_text(file, line.dump() + "\n");
}

}  // namespace smalltalk
