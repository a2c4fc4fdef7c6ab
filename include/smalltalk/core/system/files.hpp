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

// Whether a name that a person chose is good for a file or folder: letters, digits, '-', '_' and
// '.', which it does not begin with.
bool is_plain_name(std::string_view name);

// Calls write(temporary path), flushes that file and its folder, renames it to `path`. If write
// throws, the temporary file is removed and `path` is as it was. Creates missing folders.
// Errors: Error naming the path and the system's reason (read-only folder, no space, ...).
void write_atomically(const std::filesystem::path& path,
                      const std::function<void(const std::filesystem::path&)>& write);
void write_text_atomically(const std::filesystem::path& path, std::string_view text);
// The pieces one behind the other.
void write_pieces_atomically(const std::filesystem::path& path,
                             std::span<const std::span<const std::byte>> pieces);

// Removes what processes that were killed have left of their writing, anywhere below the folder:
// temporary files of processes of this machine that are gone, and of others that nobody has touched
// for a day.
void remove_stale_temporaries(const std::filesystem::path& folder);

// Makes `link` a symbolic link to `target`, relative, so that the folder may be moved; replaces
// what was there atomically.
void publish_link(const std::filesystem::path& link, const std::filesystem::path& target);

std::string read_text(const std::filesystem::path& path);  // Error if it cannot be read

// Creates the file if it is missing. For logs, and for what is written inside write_atomically().
void append_text(const std::filesystem::path& path, std::string_view text);

// Creates the folder, and those that it lies in, where they are missing. Error naming the folder.
void create_folder(const std::filesystem::path& folder);
// Creates the folder if needed and proves that it can be written to, else Error.
void require_writable(const std::filesystem::path& folder);

// Claims a unit of work for one process: creates `path` exclusively and returns true, or returns
// false if somebody holds it already. Works on a shared file system; used by the queues of
// training and evaluation work, where processes of different groups must not talk.
bool claim(const std::filesystem::path& path, std::string_view owner);

}  // namespace smalltalk
