// Files of a run. The run folder is the only state: every file is written under a temporary name
// beside its place, flushed to disk, and renamed, so that a name either is not there or is whole.
#pragma once

#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>

namespace smalltalk {

// Calls write(temporary path), flushes that file and its folder, renames it to `path`. If write
// throws, the temporary file is removed and `path` is as it was. Creates missing folders.
// Errors: Error naming the path and the system's reason (read-only folder, no space, ...).
void write_atomically(const std::filesystem::path& path,
                      const std::function<void(const std::filesystem::path&)>& write);
void write_text_atomically(const std::filesystem::path& path, std::string_view text);

// Makes `link` a symbolic link to `target`, relative, so that the folder may be moved; replaces
// what was there atomically.
void publish_link(const std::filesystem::path& link, const std::filesystem::path& target);

std::string read_text(const std::filesystem::path& path);  // Error if it cannot be read

// XXH3 of bytes or of a whole file, 16 hex digits.
std::string hash_bytes(std::span<const std::byte> bytes);
std::string hash_text(std::string_view text);
std::string hash_file(const std::filesystem::path& path);

// Creates the folder if needed and proves that it can be written to, else Error.
void require_writable(const std::filesystem::path& folder);

// Claims a unit of work for one process: creates `path` exclusively and returns true, or returns
// false if somebody holds it already. Works on a shared file system; used by the queues of
// training and evaluation work, where processes of different groups must not talk.
bool claim(const std::filesystem::path& path, std::string_view owner);

}  // namespace smalltalk
