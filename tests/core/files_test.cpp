#include "smalltalk/core/system/files.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <fstream>
#include <thread>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/file.hpp"
#include "smalltalk/core/system/temporary_file.hpp"
#include "support/complaint.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {
namespace {

namespace fs = std::filesystem;
using Names = std::vector<std::string>;

TEST(WriteAtomically, WritesAndReplaces) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "a.txt", "first");
  EXPECT_EQ(read_text(folder / "a.txt"), "first");
  write_text_atomically(folder / "a.txt", "");
  EXPECT_EQ(read_text(folder / "a.txt"), "");
  EXPECT_EQ(folder.entries(), Names{"a.txt"});
}

TEST(WriteAtomically, CreatesMissingFolders) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "x/y/a.txt", "text");
  EXPECT_EQ(read_text(folder / "x/y/a.txt"), "text");
}

TEST(WriteAtomically, KeepsBytes) {
  const TemporaryFolder folder;
  std::string bytes(300'000, '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7);
  write_text_atomically(folder / "a", bytes);
  EXPECT_EQ(read_text(folder / "a"), bytes);
}

TEST(WriteAtomically, WorksWithoutAFolderInTheName) {
  const TemporaryFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path());
  write_text_atomically("a.txt", "here");
  fs::current_path(before);
  EXPECT_EQ(read_text(folder / "a.txt"), "here");
}

TEST(WriteAtomically, TheNameAppearsOnlyWhenTheFileIsWhole) {
  const TemporaryFolder folder;
  write_atomically(folder / "model.h5", [&](const fs::path& temporary) {
    EXPECT_EQ(temporary.parent_path(), folder.path());
    EXPECT_EQ(temporary.extension(), ".h5");  // writers may look at it
    std::ofstream(temporary) << "half";
    EXPECT_FALSE(fs::exists(folder / "model.h5"));
    std::ofstream(temporary, std::ios::app) << " and half";
  });
  EXPECT_EQ(read_text(folder / "model.h5"), "half and half");
}

TEST(WriteAtomically, AFailingWriterLeavesTheOldFileAndNothingElse) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "a.txt", "old");
  const auto fail = [](const fs::path& temporary) {
    std::ofstream(temporary) << "half of the new";
    throw std::logic_error("stopped");
  };
  EXPECT_THROW(write_atomically(folder / "a.txt", fail), std::logic_error);
  EXPECT_EQ(read_text(folder / "a.txt"), "old");
  EXPECT_EQ(folder.entries(), Names{"a.txt"});
}

TEST(WriteAtomically, AWriterThatWritesNothingIsRefused) {
  const TemporaryFolder folder;
  EXPECT_THROW(write_atomically(folder / "a.txt", [](const fs::path&) {}), Error);
  EXPECT_TRUE(folder.entries().empty());
}

TEST(WriteAtomically, ErrorsNameThePathAndTheReason) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "file", "");
  const std::string below_file =
      complaint_of([&] { write_text_atomically(folder / "file/a.txt", "x"); });
  EXPECT_NE(below_file.find("file"), std::string::npos) << below_file;
  EXPECT_NE(below_file.find("ot a directory"), std::string::npos) << below_file;

  fs::create_directory(folder / "taken");
  const std::string on_folder = complaint_of([&] { write_text_atomically(folder / "taken", "x"); });
  EXPECT_NE(on_folder.find("taken"), std::string::npos) << on_folder;
  EXPECT_NE(on_folder.find("s a directory"), std::string::npos) << on_folder;
  EXPECT_EQ(folder.entries().size(), 2U);

  // /proc refuses new files even to root.
  EXPECT_NE(complaint_of([] { write_text_atomically("/proc/smalltalk", "x"); }).find("/proc"),
            std::string::npos);
  EXPECT_THROW(write_text_atomically(folder / "", "x"), Error);
}

TEST(WriteAtomically, AFullDiskIsAnError) {
  // /dev/full takes no byte; the temporary name leads there.
  const TemporaryFolder folder;
  const auto full = [](const fs::path& temporary) {
    fs::create_symlink("/dev/full", temporary);
    std::ofstream file(temporary);
    file << "text" << std::flush;
    if (!file) throw Error("no space");
  };
  EXPECT_THROW(write_atomically(folder / "a", full), Error);
  EXPECT_TRUE(folder.entries().empty());
}

TEST(WriteAtomically, ManyWritersOfOneNameLeaveOneWholeFile) {
  const TemporaryFolder folder;
  std::vector<std::thread> threads;
  for (char c = 'a'; c < 'i'; ++c) {
    threads.emplace_back([&folder, c] {
      for (int i = 0; i < 5; ++i) write_text_atomically(folder / "x", std::string(10'000, c));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const std::string text = read_text(folder / "x");
  EXPECT_EQ(text, std::string(10'000, text.front()));
  EXPECT_EQ(folder.entries(), Names{"x"});
}

TEST(ReadText, ErrorsNameThePath) {
  const TemporaryFolder folder;
  const std::string missing = complaint_of([&] { read_text(folder / "missing.txt"); });
  EXPECT_NE(missing.find("missing.txt"), std::string::npos);
  EXPECT_NE(missing.find("No such file"), std::string::npos);
  EXPECT_THROW(read_text(folder.path()), Error);
}

TEST(AppendText, AddsAtTheEndAndTellsTheSystemsReason) {
  const TemporaryFolder folder;
  append_text(folder / "log", "one\n");
  append_text(folder / "log", "two\n");
  EXPECT_EQ(read_text(folder / "log"), "one\ntwo\n");
  const std::string full = complaint_of([] { append_text("/dev/full", "x"); });
  EXPECT_NE(full.find("/dev/full': No space left on device"), std::string::npos) << full;
}

TEST(RequireWritable, CreatesTheFolderAndLeavesItEmpty) {
  const TemporaryFolder folder;
  require_writable(folder / "a/b");
  EXPECT_TRUE(fs::is_empty(folder / "a/b"));
}

TEST(RequireWritable, RefusesFilesAndFoldersThatTakeNoFile) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "file", "");
  EXPECT_NE(complaint_of([&] { require_writable(folder / "file"); }).find("file"),
            std::string::npos);
  EXPECT_THROW(require_writable(folder / "file/below"), Error);
  EXPECT_NE(complaint_of([] { require_writable("/proc"); }).find("/proc"), std::string::npos);
}

TEST(Claim, IsGivenOnce) {
  const TemporaryFolder folder;
  EXPECT_TRUE(claim(folder / "queue/3", "rank 1"));
  EXPECT_FALSE(claim(folder / "queue/3", "rank 2"));
  EXPECT_TRUE(claim(folder / "queue/4", "rank 2"));
  EXPECT_EQ(read_text(folder / "queue/3"), "rank 1\n");
}

TEST(Claim, IsGivenOnceToManyAtATime) {
  const TemporaryFolder folder;
  std::atomic<int> given = 0;
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 8; ++thread) {
    threads.emplace_back([&] {
      for (int unit = 0; unit < 50; ++unit) {
        if (claim(folder / ("q/" + std::to_string(unit)), "someone")) ++given;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(given, 50);
}

TEST(Claim, FailureIsNotARefusal) {
  const TemporaryFolder folder;
  write_text_atomically(folder / "file", "");
  EXPECT_THROW(claim(folder / "file/unit", "me"), Error);
  EXPECT_THROW(claim("/proc/unit", "me"), Error);
}

TEST(RemoveStaleTemporaries, OfDeadProcessesOnly) {
  const TemporaryFolder folder;
  fs::create_directories(folder / "a/b");
  const pid_t child = ::fork();
  if (child == 0) {
    try {
      write_atomically(folder / "a/b/c.h5", [](const fs::path& temporary) {
        std::ofstream(temporary) << "half";
        ::raise(SIGKILL);
      });
    } catch (...) {
    }
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  const auto files = [&](const fs::path& in) {
    return std::distance(fs::directory_iterator(in), fs::directory_iterator());
  };
  EXPECT_EQ(files(folder / "a/b"), 1);
  write_atomically(folder / "a/mine", [&](const fs::path& temporary) {
    std::ofstream(temporary) << "being written";
    remove_stale_temporaries(folder.path());
    EXPECT_TRUE(fs::exists(temporary));
  });
  EXPECT_EQ(files(folder / "a/b"), 0);
  EXPECT_TRUE(fs::exists(folder / "a/mine"));
}

// In containers processes have the same number again and again.
TEST(RemoveStaleTemporaries, OfAnEarlierProcessOfTheSameNumber) {
  const TemporaryFolder folder;
  std::string earlier;
  {
    const TemporaryFile mine(folder / "x");
    const std::string name = mine.path().filename().string();
    EXPECT_FALSE(is_stale_temporary(mine.path()));
    // Host, number, what tells processes of that number apart, a counter, "x".
    earlier = name;
    const size_t at = earlier.rfind('.') - 1;
    earlier[at] = earlier[at] == '0' ? '1' : '0';
  }
  write_text_atomically(folder / "y", "");
  fs::rename(folder / "y", folder / earlier);
  EXPECT_TRUE(is_stale_temporary(folder / earlier)) << earlier;
  remove_stale_temporaries(folder.path());
  EXPECT_TRUE(folder.entries().empty());
}

// One process makes the file and names it, others write parts of it under that name.
TEST(TemporaryFile, IsWrittenByMany) {
  const TemporaryFolder folder;
  TemporaryFile first(folder / "x");
  File::open(first.path(), O_WRONLY | O_CREAT | O_EXCL).resize(8);
  EXPECT_TRUE(first.path().filename().string().starts_with(".tmp-"));
  {
    TemporaryFile second(folder / "x", first.path());
    const std::string text = "abcd";
    File::open(second.path(), O_WRONLY).write_at(4, std::as_bytes(std::span(text)));
    second.leave();
  }
  EXPECT_FALSE(fs::exists(folder / "x"));
  first.publish();
  EXPECT_EQ(read_text(folder / "x"), std::string(4, '\0') + "abcd");
  EXPECT_EQ(folder.entries(), Names{"x"});
  std::string found(3, ' ');
  File::open(folder / "x", O_RDONLY).read_at(5, std::as_writable_bytes(std::span(found)));
  EXPECT_EQ(found, "bcd");
  EXPECT_TRUE(mentions(
      complaint_of([&] {
        File::open(folder / "x", O_RDONLY).read_at(6, std::as_writable_bytes(std::span(found)));
      }),
      "x': it ended early"));
}

TEST(TemporaryFile, OfWhoFailsIsRemovedByAnyOfThem) {
  const TemporaryFolder folder;
  TemporaryFile first(folder / "x");
  File::open(first.path(), O_WRONLY | O_CREAT | O_EXCL).resize(8);
  { const TemporaryFile second(folder / "x", first.path()); }
  EXPECT_TRUE(folder.entries().empty());
  EXPECT_THROW(first.publish(), Error);
}

}  // namespace
}  // namespace smalltalk
