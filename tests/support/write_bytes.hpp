// Files with given contents, made as no job of ours makes them: in place, not flushed.
#pragma once

#include <filesystem>
#include <fstream>
#include <string_view>

namespace smalltalk {

// Makes the folder, too; returns the path.
inline std::filesystem::path write_bytes(const std::filesystem::path& path,
                                         std::string_view bytes) {
  std::filesystem::create_directories(path.parent_path());
  std::ofstream(path, std::ios::binary)
      .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  return path;
}

}  // namespace smalltalk
