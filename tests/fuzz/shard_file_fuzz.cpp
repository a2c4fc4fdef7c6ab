// A shard file whose checksums are right, with any values in it: what no checksum catches.
#include <algorithm>
#include <cstring>

#include "data/hdf5_file.hpp"
#include "data/shard_format.hpp"
#include "fuzz.hpp"
#include "smalltalk/data/score_file.hpp"

namespace smalltalk {
namespace {

// Takes lists off the front of the input: a byte for how many, then the values.
class Lists {
 public:
  explicit Lists(std::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  std::vector<T> next() {
    std::vector<T> values(bytes_.empty() ? 0 : static_cast<unsigned char>(bytes_[0]) % 16);
    if (!bytes_.empty()) bytes_.remove_prefix(1);
    for (T& value : values) {
      // Small values are the likely ones; 255 makes a large one.
      const auto byte = static_cast<unsigned char>(bytes_.empty() ? 0 : bytes_[0]);
      if (!bytes_.empty()) bytes_.remove_prefix(1);
      value = static_cast<T>(byte);
      if (byte == 255 && bytes_.size() >= sizeof(T)) {
        std::memcpy(&value, bytes_.data(), sizeof(T));
        bytes_.remove_prefix(sizeof(T));
      }
    }
    return values;
  }

 private:
  std::string_view bytes_;
};

template <typename T>
void write(Hdf5File& file, const std::string& name, const std::vector<T>& values, bool always) {
  if (always || !values.empty()) file.write<T>(name, values);
}

}  // namespace
}  // namespace smalltalk

extern "C" int fuzz_shard_file(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  Lists lists(fuzz::text_of(data, size));
  const auto path = fuzz::folder() / "shards.h5";
  const auto numbers = lists.next<int64_t>();
  const auto offsets = lists.next<uint64_t>();
  {
    Hdf5File file = Hdf5File::create(path, path);
    file.write_format(kShardFormat);
    file.write_text_attribute("method", "greedy");
    file.write_integer_attribute("kept_sequences", numbers.empty() ? 0 : numbers[0]);
    write(file, "offsets", offsets, true);
    write(file, "expert", lists.next<uint16_t>(), true);
    write(file, "sequences", lists.next<uint64_t>(), true);
    write(file, "chunk", lists.next<uint64_t>(), false);
    write(file, "capacities", lists.next<uint64_t>(), false);
    write(file, "prices", lists.next<double>(), false);
    write(file, "closing_expert", lists.next<uint16_t>(), false);
    write(file, "closing_rank", lists.next<uint32_t>(), true);
    write(file, "closing_sequence", lists.next<uint64_t>(), true);
    const auto chunk_checksums =
        file.has_dataset("chunk") ? file.checksums("chunk") : std::vector<uint64_t>{};
    if (!offsets.empty()) {
      file.write_text_attribute(
          "content_hash", shards_content_hash(offsets, file.checksums("expert"), chunk_checksums));
    }
    file.close();
  }
  fuzz::result_or_error("shards.h5", [&] { describe_hdf5(path); });
  fuzz::result_or_error("shards.h5", [&] {
    const Shards shards = read_shards(path);
    for (int64_t e = 0; e < shards.num_experts(); ++e) {
      const auto of_expert = shards.of_expert(e);
      const auto read = read_shard(path, e);
      fuzz::require(std::ranges::equal(of_expert, read), "a shard reads as another");
    }
  });
  return 0;
}
