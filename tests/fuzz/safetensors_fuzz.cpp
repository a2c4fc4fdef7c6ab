#include "fuzz.hpp"
#include "smalltalk/lm/model/safetensors.hpp"

extern "C" int fuzz_safetensors(const uint8_t* data, size_t size) {
  using namespace smalltalk;
  const auto path = fuzz::write_file("x.safetensors", fuzz::text_of(data, size));
  fuzz::result_or_error("x.safetensors", [&] {
    describe_safetensors(path);
    for (const auto& [name, tensor] : read_safetensors(path).tensors) {
      int64_t values = 1;
      for (const int64_t extent : tensor.shape) values *= extent;
      fuzz::require(values == static_cast<int64_t>(tensor.values.size()), "a shape does not fit");
    }
  });
  return 0;
}
