// One safetensors file of a model's flat buffers, of which each rank of a group holds a shard: each
// writes and reads its own pieces, and nothing of the file is ever gathered. Its bytes do not
// depend on the ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lm/model/parameter_layout.hpp"
#include "lm/model/safetensors_header.hpp"
#include "lm/train/gradient_buckets.hpp"
#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/core/system/file.hpp"
#include "smalltalk/core/system/temporary_file.hpp"

namespace smalltalk {

// A buffer in the file: the parameters' names with a prefix.
struct ShardedBuffer {
  std::string prefix;
  at::Tensor shard;  // GradientBuckets::shard_size() float32, in host memory
};

// Of a model, and of this rank's share of it.
struct ShardedLayout {
  const ParameterLayout& parameters;
  std::vector<ShardPiece> pieces;  // ascending
};

// The pieces of what a rank holds, the whole model or a slice of it, as pieces of the whole.
std::vector<ShardPiece> whole_pieces(const ParameterLayout& whole, const ParameterLayout& held,
                                     const std::vector<ShardPiece>& pieces);

// Of a file of these buffers. Their shards are not looked at.
SafetensorsHeader sharded_header(const ParameterLayout& layout,
                                 std::span<const ShardedBuffer> buffers,
                                 const std::map<std::string, std::string>& metadata);

// A file under way. All members that are collective are called by the same thread, and all ranks
// call them in the same order. A rank that fails throws; nothing gets its name then.
class ShardedWrite {
 public:
  // Creates the file under a temporary name, with the metadata of rank 0, and begins to write this
  // rank's pieces on a thread of its own. `published` is called on rank 0, on a thread, once the
  // file has its name. Collective. `layout.parameters` and `group` must outlive it.
  ShardedWrite(const std::filesystem::path& file, const HostCollectives& group,
               ShardedLayout layout, std::vector<ShardedBuffer> buffers,
               const std::map<std::string, std::string>& metadata,
               std::function<void()> published = {});
  // Waits for this rank's thread. A file that is not complete is removed.
  ~ShardedWrite();
  ShardedWrite(const ShardedWrite&) = delete;

  // Whether this rank has written its share and complete() is to be called. Does not wait. Error:
  // what a thread threw that has come to its end.
  bool written();
  // Waits for the shares of all ranks; then the file gets its hash and its name, on a thread of
  // rank 0. Collective.
  void complete();
  // Completes the file, if it is not yet, and waits until it has its name. Collective.
  void finish();

 private:
  void write_share();
  void publish(uint64_t data_hash);
  void start(std::function<void()> work);  // on a thread
  void wait();

  const HostCollectives& group_;
  ShardedLayout layout_;
  std::vector<ShardedBuffer> buffers_;
  std::function<void()> published_;
  SafetensorsHeader header_;
  std::optional<TemporaryFile> temporary_;
  std::optional<File> file_;
  uint64_t data_hash_ = 0;  // of what this rank has written
  bool is_complete_;        // no rank has to be waited for
  std::future<void> thread_;
};

// Reads this rank's pieces of all buffers into their shards, straight from the file, and returns
// additive_hash() of what it has read. Of a file whose tensors are not those of
// sharded_header(buffers) it reads some other share into nowhere. Either way each byte of the data
// is read by one rank, so that the sum over the group is the hash of all data.
uint64_t read_share(const std::filesystem::path& file, const SafetensorsHeader& header,
                    const ShardedLayout& layout, std::span<const ShardedBuffer> buffers,
                    const HostCollectives& group);

// Reads into this rank's shards what the file holds under other names; what has an empty one is
// left as it is.
void read_renamed(const std::filesystem::path& file, const SafetensorsHeader& header,
                  const ShardedLayout& layout, std::span<const ShardedBuffer> buffers,
                  const std::function<std::string(const std::string&)>& name_in_file);

}  // namespace smalltalk
