#include "smalltalk/core/system/files.hpp"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <system_error>
#include <vector>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/file.hpp"
#include "smalltalk/core/system/temporary_file.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

void create_folder(const fs::path& folder) {
  if (folder.empty()) return;  // of a file in the folder that we are in
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw_system_error("create the folder", folder, error.value());
  if (!fs::is_directory(folder)) throw_system_error("create the folder", folder, ENOTDIR);
}

bool is_plain_name(std::string_view name) {
  const bool good = std::all_of(name.begin(), name.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
  });
  return good && !name.empty() && name.front() != '.';
}

void write_atomically(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  if (!path.has_filename()) throw Error("'" + path.string() + "' is not the name of a file");
  create_folder(folder_of(path));
  TemporaryFile temporary(path);
  write(temporary.path());
  if (!fs::exists(temporary.path())) {
    throw Error("internal error: nothing was written for '" + path.string() + "'");
  }
  // Data first, then the name: after a crash of the machine a name must not stand for an empty
  // file.
  File file = File::open(temporary.path(), O_RDONLY);
  file.flush();
  file.close();
  temporary.publish();
}

void write_text_atomically(const fs::path& path, std::string_view text) {
  const std::span<const std::byte> piece = std::as_bytes(std::span(text));
  write_pieces_atomically(path, {&piece, 1});
}

void write_pieces_atomically(const fs::path& path,
                             std::span<const std::span<const std::byte>> pieces) {
  write_atomically(path, [&](const fs::path& temporary) {
    try {
      File file = File::open(temporary, O_WRONLY | O_CREAT | O_TRUNC);
      for (const std::span<const std::byte> piece : pieces) {
        file.write({reinterpret_cast<const char*>(piece.data()), piece.size()});
      }
      file.close();
    } catch (const Error& error) {
      throw Error("cannot write '" + path.string() + "': " + error.what());
    }
  });
}

void remove_stale_temporaries(const fs::path& folder) {
  std::error_code error;
  std::vector<fs::path> stale;
  const auto options = fs::directory_options::skip_permission_denied;
  for (fs::recursive_directory_iterator entry(folder, options, error), end; !error && entry != end;
       entry.increment(error)) {
    if (is_stale_temporary(entry->path())) stale.push_back(entry->path());
  }
  for (const fs::path& path : stale) fs::remove_all(path, error);
}

void publish_link(const fs::path& link, const fs::path& target) {
  TemporaryFile temporary(link);
  const fs::path relative = target.lexically_relative(folder_of(link));
  if (::symlink(relative.c_str(), temporary.path().c_str()) != 0) {
    throw_system_error("create a link at", link, errno);
  }
  temporary.publish();
}

std::string read_text(const fs::path& path) {
  const File file = File::open(path, O_RDONLY);
  std::string text;
  std::vector<char> buffer(size_t{1} << 16);
  while (const size_t count = file.read(buffer)) text.append(buffer.data(), count);
  return text;
}

void append_text(const fs::path& path, std::string_view text) {
  File file = File::open(path, O_WRONLY | O_CREAT | O_APPEND);
  file.write(text);
  file.close();
}

void require_writable(const fs::path& folder) {
  create_folder(folder);
  const TemporaryFile probe(folder / "probe");
  try {
    File file = File::open(probe.path(), O_WRONLY | O_CREAT | O_TRUNC);
    file.write("probe");
    file.close();
  } catch (const Error& error) {
    throw Error("the folder '" + folder.string() + "' cannot be written to: " + error.what());
  }
}

bool claim(const fs::path& path, std::string_view owner) {
  create_folder(folder_of(path));
  File file = File::create_exclusively(path);
  if (!file.is_open()) return false;
  try {
    file.write(std::string(owner) + "\n");
    file.flush();
    file.close();
  } catch (const Error&) {
    ::unlink(path.c_str());  // or nobody would ever do the work
    throw;
  }
  return true;
}

}  // namespace smalltalk
