// Checkpoints: weights, moments of AdamW, step, in one safetensors file with a hash, written
// atomically while training goes on. The file does not depend on the size of the group.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <cstring>
#include <sstream>

#include "lm/train/trainer_impl.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/model/safetensors.hpp"

namespace smalltalk {
namespace {

constexpr const char* kProvenance = "provenance.";

std::string exact(double value) { return fmt::format("{:a}", value); }

std::string exact(const OutlierWindow& window) {
  std::string text;
  for (double value : window.values()) text += exact(value) + " ";
  return text;
}

// Empty where the checkpoint has none.
OutlierWindow window_of(const SafetensorsFile& file, const std::string& key,
                        const std::filesystem::path& path) {
  OutlierWindow window;
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) return window;
  std::istringstream words(found->second);
  for (std::string word; words >> word;) {
    char* end = nullptr;
    window.add(std::strtod(word.c_str(), &end));
    if (*end == '\0') continue;
    throw Error("'" + path.string() + "': '" + key + "' holds '" + word + "', not a number");
  }
  return window;
}

const std::string& required(const SafetensorsFile& file, const std::string& key,
                            const std::filesystem::path& path) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) {
    throw Error("'" + path.string() + "' is no checkpoint of this program: it has no '" + key +
                "'");
  }
  return found->second;
}

int64_t required_count(const SafetensorsFile& file, const std::string& key,
                       const std::filesystem::path& path) {
  const std::string& text = required(file, key, path);
  size_t used = 0;
  int64_t value = -1;
  try {
    value = std::stoll(text, &used);
  } catch (const std::logic_error&) {
  }
  if (value < 0 || used != text.size()) {
    throw Error("'" + path.string() + "': '" + key + "' is not a count: '" + text + "'");
  }
  return value;
}

void check_provenance(const SafetensorsFile& file, const TrainOptions& options,
                      const std::filesystem::path& path) {
  for (const auto& [key, value] : options.provenance) {
    const std::string& saved = required(file, kProvenance + key, path);
    if (saved == value) continue;
    throw Error("'" + path.string() + "' belongs to another run: its " + key + " is '" + saved +
                "', here it is '" + value + "'. Remove it or choose another folder");
  }
}

const SafetensorsFile::Tensor& tensor_of(const SafetensorsFile& file, const std::string& name,
                                         const ParameterSpec& spec,
                                         const std::filesystem::path& path) {
  const auto found = file.tensors.find(name);
  if (found == file.tensors.end() || found->second.shape != spec.shape) {
    throw Error("'" + path.string() + "' has no tensor '" + name + "' of the model's shape");
  }
  return found->second;
}

}  // namespace

Trainer::Impl::Snapshot Trainer::Impl::snapshot() {
  Snapshot now;
  const auto copy = [&](const at::Tensor& host) {
    return options.group.rank == 0 ? host.clone() : at::Tensor();
  };
  now.parameters = copy(model.host_parameters());
  now.first = copy(optimizer.gather_first());
  now.second = copy(optimizer.gather_second());
  now.metadata = {{"step", std::to_string(step)},
                  {"tokens", std::to_string(num_targets)},
                  {"interval_steps", std::to_string(interval_steps)},
                  {"interval_loss", exact(interval_loss)},
                  {"interval_max_loss", exact(interval_max_loss)},
                  {"last_loss", exact(last_loss)},
                  {"losses", exact(losses)},
                  {"gradient_norms", exact(gradient_norms)},
                  {"skipped_steps", std::to_string(skipped_steps)}};
  for (const auto& [key, value] : options.provenance) now.metadata[kProvenance + key] = value;
  return now;
}

void Trainer::Impl::Snapshot::write(const ParameterLayout& layout,
                                    const std::filesystem::path& file) const {
  std::map<std::string, TensorView> tensors;
  const auto add = [&](const std::string& prefix, const at::Tensor& flat) {
    for (const ParameterSpec& spec : layout.specs) {
      tensors[prefix + spec.name] = {
          spec.shape, {flat.const_data_ptr<float>() + spec.offset, static_cast<size_t>(spec.size)}};
    }
  };
  add("", parameters);
  add("adam_m.", first);
  add("adam_v.", second);
  write_safetensors(file, tensors, metadata);
}

void Trainer::Impl::save(const std::filesystem::path& file) {
  const Snapshot now = snapshot();
  if (options.group.rank == 0) now.write(model.layout, file);
  options.group.barrier();
}

void Trainer::Impl::checkpoint() {
  if (options.folder.empty() || step == saved_step) return;
  saved_step = step;
  Snapshot now = snapshot();
  if (options.group.rank != 0) return;
  checkpoints.begin_write(step, [this, now = std::move(now)](const std::filesystem::path& file) {
    now.write(model.layout, file);
  });
}

void Trainer::Impl::flush_checkpoint() {
  checkpoints.wait();
  // What follows may rely on it.
  options.group.barrier();
}

void Trainer::Impl::resume() {
  // The group's first rank decides: on a shared file system the others may see other files.
  SafetensorsFile saved;
  int64_t chosen = -1;
  std::string damage;
  if (options.group.rank == 0) {
    for (const int64_t candidate : checkpoints.steps()) {
      try {
        saved = read_safetensors(checkpoints.file(candidate));
        chosen = candidate;
        break;
      } catch (const Error& error) {
        damage = error.what();
        log_warning(damage + "; trying the one before it");
      }
    }
    if (chosen < 0 && !damage.empty()) {
      throw Error(damage + ". No checkpoint before it is left: remove them to train " +
                  options.name + " from its beginning");
    }
  }
  options.group.broadcast(std::as_writable_bytes(std::span(&chosen, 1)), 0);
  if (chosen < 0) return;
  if (options.group.rank != 0) saved = read_safetensors(checkpoints.file(chosen));
  take_up(saved, checkpoints.file(chosen));
  saved_step = step;
}

void Trainer::Impl::take_up(const SafetensorsFile& saved, const std::filesystem::path& file) {
  check_provenance(saved, options, file);
  at::Tensor first = at::zeros({model.parameters.numel()}, at::kFloat);
  at::Tensor second = at::zeros_like(first);
  // Everything is looked at before anything is taken up.
  for (const ParameterSpec& spec : model.layout.specs) {
    const auto& m = tensor_of(saved, "adam_m." + spec.name, spec, file).values;
    const auto& v = tensor_of(saved, "adam_v." + spec.name, spec, file).values;
    tensor_of(saved, spec.name, spec, file);
    std::copy(m.begin(), m.end(), first.data_ptr<float>() + spec.offset);
    std::copy(v.begin(), v.end(), second.data_ptr<float>() + spec.offset);
  }
  const int64_t steps_done = required_count(saved, "step", file);
  const int64_t saved_targets = required_count(saved, "tokens", file);
  const int64_t saved_interval = required_count(saved, "interval_steps", file);
  const int64_t saved_skips =
      saved.metadata.contains("skipped_steps") ? required_count(saved, "skipped_steps", file) : 0;
  const OutlierWindow saved_losses = window_of(saved, "losses", file);
  const OutlierWindow saved_norms = window_of(saved, "gradient_norms", file);
  for (const ParameterSpec& spec : model.layout.specs) {
    model.set_parameter(spec, saved.tensors.at(spec.name).values);
  }
  optimizer.set_moments(first, second);
  step = steps_done;
  num_targets = saved_targets;
  interval_steps = saved_interval;
  losses = saved_losses;
  gradient_norms = saved_norms;
  skipped_steps = saved_skips;
  last_loss = std::strtod(required(saved, "last_loss", file).c_str(), nullptr);
  interval_loss = std::strtod(required(saved, "interval_loss", file).c_str(), nullptr);
  interval_max_loss = std::strtod(required(saved, "interval_max_loss", file).c_str(), nullptr);
}

}  // namespace smalltalk
