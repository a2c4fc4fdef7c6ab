// Checkpoints: weights, moments of AdamW and the progress of training, in one safetensors file with
// a hash, written atomically while training goes on. The file does not depend on the size of the
// group.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/format.h>

#include <algorithm>

#include "lm/train/trainer_impl.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/model/safetensors.hpp"

namespace smalltalk {
namespace {

const std::vector<float>& values_of(const SafetensorsFile& file, const std::string& name,
                                    const ParameterSpec& spec, const std::filesystem::path& path) {
  const auto found = file.tensors.find(name);
  if (found == file.tensors.end() || found->second.shape != spec.shape) {
    throw Error("'" + path.string() + "' has no tensor '" + name + "' of the model's shape");
  }
  return found->second.values;
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
  now.metadata = checkpoint_metadata(progress, options.provenance);
  now.metadata["schedule"] = to_string(config.schedule());
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
  if (options.folder.empty() || progress.step == saved_step) return;
  saved_step = progress.step;
  Snapshot now = snapshot();
  if (options.group.rank != 0) return;
  checkpoints.begin_write(saved_step,
                          [this, now = std::move(now)](const std::filesystem::path& file) {
                            now.write(model.layout, file);
                          });
}

void Trainer::Impl::flush_checkpoint() {
  checkpoints.wait();
  // The other ranks may rely on the file, too.
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
        const std::string schedule = saved.metadata["schedule"];
        if (!schedule.empty() &&
            !begin_alike(parse_schedule(schedule), config.schedule(), candidate)) {
          damage = fmt::format("'{}' was trained at other learning rates, '{}'",
                               checkpoints.file(candidate).string(), schedule);
          continue;
        }
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
  saved_step = progress.step;
}

void Trainer::Impl::take_up(const SafetensorsFile& saved, const std::filesystem::path& file) {
  // Everything is looked at before anything is taken up.
  const TrainingProgress saved_progress = progress_of(saved, options.provenance, file);
  at::Tensor first = at::zeros({model.parameters.numel()}, at::kFloat);
  at::Tensor second = at::zeros_like(first);
  for (const ParameterSpec& spec : model.layout.specs) {
    values_of(saved, spec.name, spec, file);
    const auto& m = values_of(saved, "adam_m." + spec.name, spec, file);
    const auto& v = values_of(saved, "adam_v." + spec.name, spec, file);
    std::copy(m.begin(), m.end(), first.data_ptr<float>() + spec.offset);
    std::copy(v.begin(), v.end(), second.data_ptr<float>() + spec.offset);
  }
  for (const ParameterSpec& spec : model.layout.specs) {
    model.set_parameter(spec, saved.tensors.at(spec.name).values);
  }
  optimizer.set_moments(first, second);
  progress = saved_progress;
}

}  // namespace smalltalk
