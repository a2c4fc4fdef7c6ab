#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "mpi_test.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

Session* session = nullptr;

class AbortAtFailure : public testing::EmptyTestEventListener {
  // Kept, because googletest holds its lock while it reports a failure: asking then would hang.
  void OnTestStart(const testing::TestInfo& test) override {
    name_ = std::string(test.test_suite_name()) + "." + test.name();
  }

  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    const std::string text = "[test rank " + std::to_string(session->world().rank()) + " of " +
                             std::to_string(session->world().size()) + "] " + name_ +
                             " failed at " + (result.file_name() ? result.file_name() : "?") + ":" +
                             std::to_string(result.line_number()) + "\n" + result.message() + "\n";
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(nullptr);
    if (session->world().size() == 1) return;
    // Time for the launcher to forward the text, and for other ranks to say what they saw.
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    session->abort(kExitFailure);
  }

  std::string name_ = "outside a test";
};

}  // namespace

Session& test_session() { return *session; }

}  // namespace smalltalk

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  smalltalk::Session session(&argc, &argv);
  smalltalk::session = &session;

  auto& listeners = testing::UnitTest::GetInstance()->listeners();
  if (session.world().rank() != 0) {
    delete listeners.Release(listeners.default_result_printer());
    delete listeners.Release(listeners.default_xml_generator());
    if (testing::GTEST_FLAG(list_tests)) return 0;
  }
  listeners.Append(new smalltalk::AbortAtFailure);
  return RUN_ALL_TESTS();
}
