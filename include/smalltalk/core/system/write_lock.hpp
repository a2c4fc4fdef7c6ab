// A lock between processes, perhaps of different machines.
#pragma once

#include <filesystem>
#include <string>

namespace smalltalk {

// The only right to write something, held by a process until the object or the process ends,
// however that comes about: the system keeps it (flock). A file system without locks lets everyone
// pass, with a warning.
class WriteLock {
 public:
  // Takes the lock file `path`, creating it; waits a moment, as a batch system may start a job
  // again while the last processes of its former life still end. Error: somebody holds it; names
  // `what`, who that is and since when. Throws Stopped if this process is asked to stop meanwhile.
  WriteLock(const std::filesystem::path& path, const std::string& what,
            double patience_seconds = 3);
  ~WriteLock();
  WriteLock(const WriteLock&) = delete;
  WriteLock& operator=(const WriteLock&) = delete;

 private:
  int descriptor_ = -1;
};

// Whether a process holds the lock at the moment, as far as its file system tells. Creates nothing.
bool is_locked(const std::filesystem::path& path);

}  // namespace smalltalk
