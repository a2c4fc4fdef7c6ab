// Checkpoints: weights, moments of AdamW and the progress of training, in one safetensors file with
// a hash, written atomically while training goes on. Each rank writes and reads its own shard; the
// file does not depend on the size of the group.
#include <fmt/format.h>

#include <functional>
#include <numeric>
#include <utility>

#include "lm/model/model_config_file.hpp"
#include "lm/train/trainer_impl.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/lm/model/model_folder.hpp"

namespace smalltalk {
namespace {

std::vector<ShardedBuffer> buffers_of(const ShardedAdamW::Shards& shards) {
  return {{"", shards.parameters}, {"adam_m.", shards.first}, {"adam_v.", shards.second}};
}

// What the lowest rank that has one complains of; empty if none has. A text is one line.
std::string first_complaint(const std::string& mine, const HostCollectives& group) {
  const std::string line = mine.empty() ? "" : mine + "\n";
  const auto all = group.all_gather_bytes(std::as_bytes(std::span(line)));
  const std::string text(reinterpret_cast<const char*>(all.data()), all.size());
  return text.substr(0, text.find('\n'));
}

// Error: the file holds other tensors than `expected`.
void require_tensors(const std::filesystem::path& file, const SafetensorsHeader& header,
                     const SafetensorsHeader& expected) {
  for (const auto& [name, entry] : expected.tensors) {
    const auto found = header.tensors.find(name);
    if (found == header.tensors.end() || found->second.dtype != entry.dtype ||
        found->second.shape != entry.shape) {
      throw Error("'" + file.string() + "' has no tensor '" + name + "' of the model's shape");
    }
  }
  if (header.tensors != expected.tensors) {
    throw Error("'" + file.string() + "' has tensors that the model has not");
  }
}

}  // namespace

std::map<std::string, std::string> Trainer::Impl::checkpoint_entries() const {
  auto metadata = checkpoint_metadata(progress, options.provenance);
  metadata["schedule"] = to_string(config.schedule());
  return metadata;
}

void Trainer::Impl::save(const std::filesystem::path& file) {
  ShardedWrite(file, group(), sharded_layout(), buffers_of(optimizer.copy_shards()),
               checkpoint_entries())
      .finish();
  group().barrier();
}

void Trainer::Impl::save_model(const std::filesystem::path& folder,
                               const std::map<std::string, std::string>& metadata) {
  // The weights last: a folder with weights is a whole one.
  if (options.group.rank == 0) {
    write_text_atomically(config_file(folder), model_config_text(model.config, metadata));
  }
  const at::Tensor shard = optimizer.copy_shards().parameters;
  ShardedWrite(weights_file(folder), group(), sharded_layout(), {{"", shard}}, metadata).finish();
  group().barrier();
}

void Trainer::Impl::checkpoint() {
  if (options.folder.empty() || progress.step == saved_step) return;
  optimizer.wait_for_parameters();
  if (write) write->finish();  // one at a time
  saved_step = progress.step;
  write.emplace(checkpoints.file(saved_step), group(), sharded_layout(),
                buffers_of(optimizer.copy_shards()), checkpoint_entries(),
                [this, step = saved_step] { checkpoints.written(step); });
}

void Trainer::Impl::complete_checkpoint() {
  // The group may have said so in two steps before anybody heard of it.
  if (!write || !write->written()) return;
  optimizer.wait_for_parameters();
  write->complete();
}

void Trainer::Impl::flush_checkpoint() {
  optimizer.wait_for_parameters();
  if (write) write->finish();
  write.reset();
  // The other ranks may rely on the file, too.
  group().barrier();
}

Trainer::Impl::Checkpoint Trainer::Impl::read(const std::filesystem::path& file,
                                              const ShardedAdamW::Shards& shards) const {
  const HostCollectives& group = options.group;
  Checkpoint read;
  // Of this rank, then of all.
  const auto look = [&](const std::function<void()>& at) {
    if (!read.damage.empty()) return;
    try {
      at();
    } catch (const Error& error) {
      read.damage = error.what();
    }
    read.damage = first_complaint(read.damage, group);
  };
  uint64_t hash = 0;
  look([&] {
    read.header = read_safetensors_header(file);
    hash = read_share(file, read.header, sharded_layout(), buffers_of(shards), group);
  });
  const std::vector<uint64_t> hashes = gather_values<uint64_t>({&hash, 1}, group);
  hash = std::accumulate(hashes.begin(), hashes.end(), uint64_t{0});
  look([&] { require_hash(file, read.header, hash); });
  return read;
}

bool Trainer::Impl::is_dense(const SafetensorsHeader& header) const {
  if (options.dense_steps == 0) return false;
  const ParameterLayout layout = parameter_layout(model.config.dense());
  return header.tensors == sharded_header(layout, buffers_of({}), {}).tensors;
}

void Trainer::Impl::resume() {
  // The group's first rank says which there are: on a shared file system the others may see other
  // files.
  const std::vector<int64_t> own =
      options.group.rank == 0 ? checkpoints.steps() : std::vector<int64_t>();
  const std::vector<int64_t> candidates = gather_values<int64_t>(own, options.group);
  if (candidates.empty()) return;
  ShardedAdamW::Shards shards = optimizer.copy_shards();  // to be read into
  std::string damage;
  for (const int64_t candidate : candidates) {
    const std::filesystem::path file = checkpoints.file(candidate);
    auto [header, what_is_wrong] = read(file, shards);
    if (!what_is_wrong.empty()) {
      damage = what_is_wrong;
      if (options.group.rank == 0) log_warning(damage + "; trying the one before it");
      continue;
    }
    // Everything is looked at before anything is taken up.
    const TrainingProgress saved = progress_of(header.metadata, options.provenance, file);
    const std::string schedule = header.metadata["schedule"];
    if (!schedule.empty() && !begin_alike(parse_schedule(schedule), config.schedule(), candidate)) {
      damage =
          fmt::format("'{}' was trained at other learning rates, '{}'", file.string(), schedule);
      continue;
    }
    if (is_dense(header)) {
      if (candidate < options.dense_steps) return;  // the dense model goes on from here
      shards = optimizer.copy_shards();  // a damaged file may have been read into the last
      read_renamed(file, header, sharded_layout(), buffers_of(shards), name_in_dense);
    } else {
      require_tensors(file, header, sharded_header(whole, buffers_of(shards), {}));
    }
    progress = saved;
    optimizer.set_shards(shards, progress.step - progress.skipped_steps);
    saved_step = progress.step;
    return;
  }
  throw Error(damage + ". No checkpoint before it is left: remove them to train " + options.name +
              " from its beginning");
}

}  // namespace smalltalk
