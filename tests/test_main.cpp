// The main of all test programs but those under mpirun. Besides GoogleTest's options it takes
// --file=NAME, in place of --gtest_filter: only the tests of NAME_test.cpp.
#include <gtest/gtest.h>

#include <filesystem>
#include <iostream>
#include <string>
#include <string_view>

namespace {

// A filter for the tests that stand in NAME_test.cpp; empty if there is none.
std::string filter_of_file(const std::string& name) {
  std::string filter;
  const testing::UnitTest& all = *testing::UnitTest::GetInstance();
  for (int i = 0; i < all.total_test_suite_count(); ++i) {
    const testing::TestSuite& suite = *all.GetTestSuite(i);
    for (int j = 0; j < suite.total_test_count(); ++j) {
      const testing::TestInfo& test = *suite.GetTestInfo(j);
      if (std::filesystem::path(test.file()).stem() != name + "_test") continue;
      filter += (filter.empty() ? "" : ":") + std::string(suite.name()) + "." + test.name();
    }
  }
  return filter;
}

}  // namespace

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  constexpr std::string_view kFile = "--file=";
  if (argc > 2 || (argc == 2 && !std::string_view(argv[1]).starts_with(kFile))) {
    std::cerr << "usage: " << argv[0] << " [--file=NAME] [options of GoogleTest]\n";
    return 2;
  }
  if (argc == 2) {
    const std::string name = argv[1] + kFile.size();
    const std::string filter = filter_of_file(name);
    if (filter.empty()) {
      std::cerr << argv[0] << ": no test of " << name << "_test.cpp is in here\n";
      return 2;
    }
    testing::GTEST_FLAG(filter) = filter;
  }
  return RUN_ALL_TESTS();
}
