#include "smalltalk/core/system/write_lock.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <memory>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

TEST(WriteLock, SecondHolderIsRefusedUntilTheFirstIsGone) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "locks" / "stages";
  auto first = std::make_unique<WriteLock>(path, "RUN");
  try {
    WriteLock second(path, "RUN");
    FAIL();
  } catch (const Error& error) {
    const std::string text = error.what();
    EXPECT_EQ(text.find("RUN is being written by another job (process "), 0u) << text;
    EXPECT_NE(text.find(std::to_string(::getpid())), std::string::npos) << text;
  }
  first.reset();
  EXPECT_NO_THROW(WriteLock(path, "RUN"));
}

TEST(WriteLock, EndsWithItsProcess) {
  const TemporaryFolder folder;
  const auto path = folder.path() / "lock";
  const pid_t child = ::fork();
  if (child == 0) {
    new WriteLock(path, "RUN");
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_NO_THROW(WriteLock(path, "RUN"));
}

}  // namespace
}  // namespace smalltalk
