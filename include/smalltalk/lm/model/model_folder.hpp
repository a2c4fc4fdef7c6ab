// What lies in a model's folder. The one place that knows these names; config.json and
// model.safetensors are those of Hugging Face's transformers.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

namespace smalltalk {

std::filesystem::path config_file(const std::filesystem::path& folder);
// The weights: those of the end, or of a checkpoint that was kept.
std::filesystem::path weights_file(const std::filesystem::path& folder, int64_t step = 0);
std::filesystem::path checkpoints_folder(const std::filesystem::path& folder);
// The steps that have a checkpoint, descending. Whether its file is whole shows when it is read.
std::vector<int64_t> checkpoint_steps(const std::filesystem::path& folder);

// What training tells of itself and never goes on from: is_log() of these files and folders.
std::filesystem::path metrics_file(const std::filesystem::path& folder);
std::filesystem::path trace_file(const std::filesystem::path& folder);
std::filesystem::path tensorboard_folder(const std::filesystem::path& folder);
bool is_log(const std::filesystem::path& path);

}  // namespace smalltalk
