// config.json of a model folder. Without LibTorch.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "smalltalk/core/experiment/experiment.hpp"

namespace smalltalk {

// What transformers needs to load a model; metadata may name "smalltalk.seq_length".
std::string model_config_text(const ModelConfig& config,
                              const std::map<std::string, std::string>& metadata);

// Error naming the file: not JSON, a key missing or of the wrong type, an architecture that we do
// not have. Whether the sizes make a model, parameter_layout() says.
ModelConfig read_model_config(const std::filesystem::path& path);

}  // namespace smalltalk
