#include "lm/train/sharded_file.hpp"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <utility>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {
namespace {

constexpr uint64_t kChunk = uint64_t{1} << 20;  // bytes by one call, which a cache holds

// What of a rank's shard lies together in the file.
struct FileRange {
  uint64_t begin;  // bytes after the header
  std::span<std::byte> bytes;
};

using NameInFile = std::function<std::string(const std::string&)>;

// What of ascending pieces is part of a parameter.
std::vector<ShardPiece> pieces_of(const ParameterSpec& spec, std::span<const ShardPiece> pieces) {
  const int64_t past = spec.offset + spec.size;
  std::vector<ShardPiece> result;
  auto piece = std::ranges::partition_point(
      pieces, [&](const ShardPiece& each) { return each.begin + each.size <= spec.offset; });
  for (; piece != pieces.end() && piece->begin < past; ++piece) {
    const int64_t begin = std::max(piece->begin, spec.offset);
    const int64_t end = std::min(piece->begin + piece->size, past);
    result.push_back({begin, end - begin, piece->shard_begin + begin - piece->begin});
  }
  return result;
}

// In the order of the file.
std::vector<FileRange> file_ranges(const SafetensorsHeader& header, const ShardedLayout& layout,
                                   std::span<const ShardedBuffer> buffers,
                                   const NameInFile& name_in_file = std::identity()) {
  std::vector<FileRange> ranges;
  for (const ShardedBuffer& buffer : buffers) {
    const auto shard =
        std::span(buffer.shard.data_ptr<float>(), static_cast<size_t>(buffer.shard.numel()));
    for (const ParameterSpec& spec : layout.parameters.specs) {
      const std::string name = name_in_file(spec.name);
      if (name.empty()) continue;
      const uint64_t tensor = header.tensors.at(buffer.prefix + name).begin;
      for (const ShardPiece& piece : pieces_of(spec, layout.pieces)) {
        const auto floats =
            shard.subspan(static_cast<size_t>(piece.shard_begin), static_cast<size_t>(piece.size));
        ranges.push_back({tensor + static_cast<uint64_t>(piece.begin - spec.offset) * sizeof(float),
                          std::as_writable_bytes(floats)});
      }
    }
  }
  std::ranges::sort(ranges, {}, &FileRange::begin);
  return ranges;
}

// Calls work(place in the data, bytes) for all of a range, some of it at a time.
template <typename Work>
void for_chunks(const FileRange& range, const Work& work) {
  for (uint64_t at = 0; at < range.bytes.size(); at += kChunk) {
    const uint64_t size = std::min<uint64_t>(kChunk, range.bytes.size() - at);
    work(range.begin + at, range.bytes.subspan(at, size));
  }
}

}  // namespace

std::vector<ShardPiece> whole_pieces(const ParameterLayout& whole, const ParameterLayout& held,
                                     const std::vector<ShardPiece>& given) {
  std::vector<ShardPiece> pieces = given, result;
  std::ranges::sort(pieces, {}, &ShardPiece::begin);
  if (held.slice.is_all()) return pieces;
  const auto parts = specs_by_name(held);
  for (const ParameterSpec& spec : whole.specs) {
    const ParameterSpec& part = *parts.at(spec.name);
    const SliceRuns runs = slice_runs(spec, part, held.slice);
    for (const ShardPiece& piece : pieces_of(part, pieces)) {
      // The piece may begin and end within a run.
      for (int64_t done = 0; done < piece.size;) {
        const int64_t at = piece.begin - part.offset + done, run = at / runs.size;
        const int64_t size = std::min(piece.size - done, (run + 1) * runs.size - at);
        result.push_back({spec.offset + runs.begin + run * runs.stride + at - run * runs.size, size,
                          piece.shard_begin + done});
        done += size;
      }
    }
  }
  return result;
}

SafetensorsHeader sharded_header(const ParameterLayout& layout,
                                 std::span<const ShardedBuffer> buffers,
                                 const std::map<std::string, std::string>& metadata) {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const ShardedBuffer& buffer : buffers) {
    for (const ParameterSpec& spec : layout.specs) shapes[buffer.prefix + spec.name] = spec.shape;
  }
  return make_safetensors_header(shapes, metadata);
}

ShardedWrite::ShardedWrite(const std::filesystem::path& file, const HostCollectives& group,
                           ShardedLayout layout, std::vector<ShardedBuffer> buffers,
                           const std::map<std::string, std::string>& metadata,
                           std::function<void()> published)
    : group_(group),
      layout_(std::move(layout)),
      buffers_(std::move(buffers)),
      published_(std::move(published)),
      header_(sharded_header(layout_.parameters, buffers_, metadata)),
      is_complete_(group.size == 1) {
  // Rank 0 tells where its data begins and what the file is called for now.
  std::string told;
  if (group_.rank == 0) {
    temporary_.emplace(file);
    create_folder(folder_of(file));
    file_.emplace(File::open(temporary_->path(), O_WRONLY | O_CREAT | O_EXCL));
    file_->resize(header_.data_begin + header_.data_bytes());
    const std::string start = header_.bytes();
    file_->write_at(0, std::as_bytes(std::span(start)));
    told.assign(reinterpret_cast<const char*>(&header_.data_begin), sizeof(header_.data_begin));
    told += temporary_->path().string();
  }
  const auto bytes = group_.all_gather_bytes(std::as_bytes(std::span(told)));
  if (group_.rank != 0) {
    std::memcpy(&header_.data_begin, bytes.data(), sizeof(header_.data_begin));
    const auto* text = reinterpret_cast<const char*>(bytes.data());
    temporary_.emplace(file, std::string(text + sizeof(header_.data_begin), text + bytes.size()));
    file_.emplace(File::open(temporary_->path(), O_WRONLY));
  }
  group_.barrier();  // all have opened it: who fails from here on may remove its name
  start([this] { write_share(); });
}

ShardedWrite::~ShardedWrite() {
  if (thread_.valid()) thread_.wait();
}

void ShardedWrite::start(std::function<void()> work) {
  thread_ = std::async(std::launch::async, [this, work = std::move(work)] {
    const TraceSpan span("write checkpoint");
    work();
  });
}

void ShardedWrite::wait() {
  if (thread_.valid()) thread_.get();
}

void ShardedWrite::write_share() {
  try {
    for (const FileRange& range : file_ranges(header_, layout_, buffers_)) {
      for_chunks(range, [&](uint64_t begin, std::span<const std::byte> bytes) {
        file_->write_at(header_.data_begin + begin, bytes);
        data_hash_ += additive_hash(bytes, begin / sizeof(float));
      });
    }
    file_->flush();
    if (group_.rank != 0) file_->close();
  } catch (const Error& error) {
    throw Error("cannot write '" + temporary_->target().string() + "': " + error.what());
  }
  buffers_.clear();
  if (group_.size == 1) publish(data_hash_);
}

void ShardedWrite::publish(uint64_t data_hash) {
  const std::string hash = hash_with_data(header_, data_hash);
  file_->write_at(hash_position(header_), std::as_bytes(std::span(hash)));
  file_->flush();
  file_->close();
  temporary_->publish();
  if (published_) published_();
}

bool ShardedWrite::written() {
  if (thread_.valid() && thread_.wait_for(std::chrono::seconds(0)) == std::future_status::ready) {
    thread_.get();
  }
  return !thread_.valid() && !is_complete_;
}

void ShardedWrite::complete() {
  wait();
  const std::vector<uint64_t> hashes = gather_values<uint64_t>({&data_hash_, 1}, group_);
  is_complete_ = true;
  if (group_.rank != 0) {
    temporary_->leave();
    return;
  }
  const uint64_t sum = std::accumulate(hashes.begin(), hashes.end(), uint64_t{0});
  start([this, sum] { publish(sum); });
}

void ShardedWrite::finish() {
  if (!is_complete_) complete();
  wait();
}

uint64_t read_share(const std::filesystem::path& path, const SafetensorsHeader& header,
                    const ShardedLayout& layout, std::span<const ShardedBuffer> buffers,
                    const HostCollectives& group) {
  const File file = File::open(path, O_RDONLY);
  uint64_t hash = 0;
  const auto read = [&](uint64_t begin, std::span<std::byte> bytes) {
    file.read_at(header.data_begin + begin, bytes);
    hash += additive_hash(bytes, begin / sizeof(float));
  };
  if (header.tensors == sharded_header(layout.parameters, buffers, {}).tensors) {
    for (const FileRange& range : file_ranges(header, layout, buffers)) for_chunks(range, read);
    return hash;
  }
  const uint64_t size = header.data_bytes(), ranks = static_cast<uint64_t>(group.size);
  const uint64_t share = (size / sizeof(float) / ranks + 1) * sizeof(float);
  const uint64_t begin = std::min(size, static_cast<uint64_t>(group.rank) * share);
  const uint64_t end = std::min(size, begin + share);
  std::vector<std::byte> chunk(kChunk);
  for (uint64_t at = begin; at < end; at += kChunk) {
    read(at, std::span(chunk).first(std::min(kChunk, end - at)));
  }
  return hash;
}

void read_renamed(const std::filesystem::path& path, const SafetensorsHeader& header,
                  const ShardedLayout& layout, std::span<const ShardedBuffer> buffers,
                  const NameInFile& name_in_file) {
  const File file = File::open(path, O_RDONLY);
  for (const FileRange& range : file_ranges(header, layout, buffers, name_in_file)) {
    file.read_at(header.data_begin + range.begin, range.bytes);
  }
}

}  // namespace smalltalk
