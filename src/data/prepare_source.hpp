// What a token file was made from, and whether one that exists is the one asked for. Private to
// src/data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "input_part.hpp"
#include "smalltalk/data/prepare.hpp"
#include "smalltalk/data/tokenizer.hpp"

namespace smalltalk {

// What tells files apart without reading them: sizes and times of change, in order; not names, so
// that what was moved stays the same. Error: one cannot be looked at.
std::string stat_key(const std::vector<std::filesystem::path>& files);
// Hashes of the MiBs of a part: of a file by its content, taken while it is read.
std::vector<uint64_t> hashes_of(const std::filesystem::path& file, const InputPart& part);
// A file by its size and the hashes of all its MiBs.
std::string content_of(int64_t size, std::span<const uint64_t> hashes);
// Which fields of a document are read, as one text; and how documents are laid out.
std::string to_text(const DocumentFields& fields);
std::string to_text(const PrepareOptions& options);

// Rank 0 joins the parts, one for each bundle. Error: too many bad documents, no documents.
void join_parts(const PrepareOptions& options, const std::vector<std::filesystem::path>& part_files,
                const std::vector<std::vector<InputPart>>& bundles, const Tokenizer& tokenizer,
                const InputFiles& inputs);

// Error: `out` was made from other text, other fields of it or with another tokenizer. Reads only
// text whose sizes or times are not those that it was last seen with, or all with options.verify.
// Text that is not there any more is left alone, with a warning, unless options.verify asks for it.
// Returns whether it is there.
bool require_same_text(const PrepareOptions& options, const Tokenizer& tokenizer);
// Notes that these files are what `out` was made from, as far as can be seen from outside.
void note_seen(const PrepareOptions& options, const InputFiles& inputs);

// Counts as a list of texts, "3 .md", and back.
std::vector<std::string> to_lines(const Counts& counts);
Counts counts_of(const std::vector<std::string>& lines);

void refuse_bad_documents(const BadDocuments& bad, double max_bad_fraction);

}  // namespace smalltalk
