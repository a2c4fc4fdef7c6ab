// What a token file was made from, and whether one that exists is the one asked for. Private to
// src/data.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "smalltalk/data/prepare.hpp"

namespace smalltalk {

// A hash of the inputs (names, sizes, first and last bytes; not folders or times, so that a copied
// corpus stays the same) and of the tokenizer.
std::string source_hash(const std::vector<std::filesystem::path>& files,
                        const std::string& tokenizer_hash);

// Rank 0 joins the parts. Error: too many bad documents, no documents.
void join_parts(const PrepareOptions& options, const std::vector<std::filesystem::path>& part_files,
                int64_t vocab_size, const std::string& tokenizer_hash, const std::string& source);

void refuse_bad_documents(const BadDocuments& bad, double max_bad_fraction);

// The report of `out`. Error if it was made from something else.
PrepareReport report_of(const PrepareOptions& options, const std::string& tokenizer_hash,
                        const std::string& source);

}  // namespace smalltalk
