// The fuzzers' kept inputs, in every build that is tested: what they found once stays mended.
#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>

#include "smalltalk/core/system/files.hpp"

using Fuzzer = int(const uint8_t*, size_t);
#define ST_DECLARE(name) extern "C" Fuzzer fuzz_##name;
ST_FUZZERS(ST_DECLARE)  // given by CMakeLists.txt

namespace smalltalk {
namespace {

struct Named {
  const char* name;
  Fuzzer* fuzzer;
};
#define ST_ROW(name) Named{#name, fuzz_##name},
const std::vector<Named> kFuzzers = {ST_FUZZERS(ST_ROW)};

class Fuzzers : public testing::TestWithParam<Named> {};

TEST_P(Fuzzers, FindNothingInTheKeptInputs) {
  const auto [name, fuzzer] = GetParam();
  int inputs = 0;
  for (const auto& file :
       std::filesystem::directory_iterator(std::string(SMALLTALK_CORPUS "/") + name)) {
    std::cout << file.path().string() << std::endl;  // before a finding aborts
    const std::string bytes = read_text(file.path());
    EXPECT_EQ(fuzzer(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()), 0);
    ++inputs;
  }
  EXPECT_GT(inputs, 0);
}

INSTANTIATE_TEST_SUITE_P(Kept, Fuzzers, testing::ValuesIn(kFuzzers),
                         [](const auto& named) { return std::string(named.param.name); });

}  // namespace
}  // namespace smalltalk
