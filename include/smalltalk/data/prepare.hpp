// From documents to tokens.h5. The ranks of a world share the input files in parts; each writes
// the tokens of its parts beside the target, rank 0 joins them in the order of the inputs. The
// bytes of the result do not depend on the number of ranks. Nothing is communicated but through
// the file system, and whether somebody was asked to stop. A job that ended early goes on with the
// parts that are missing.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/core/system/collectives.hpp"
#include "smalltalk/data/documents.hpp"
#include "smalltalk/data/token_file.hpp"

namespace smalltalk {

struct PrepareOptions {
  std::vector<std::string> inputs;
  std::filesystem::path tokenizer;  // exists
  std::filesystem::path out;        // tokens.h5
  DocumentFields fields;
  int64_t packed_length = 0;    // of sequences in which each document begins one if it can; 0: none
  double max_bad_fraction = 0;  // Error beyond it, of documents and of files: the first are named
  bool verify = false;          // of a complete `out`: read all text, though it looks as it did
  HostCollectives ranks;
};

struct PrepareReport {
  TokenFileInfo info;
  BadDocuments bad;
  Counts left_out;          // files of the folders, by extension
  int64_t num_domains = 0;  // different labels, of which there may be none
  double seconds = 0;
  bool already_complete = false;  // `out` was there, made from the same inputs and tokenizer
  bool has_text = true;           // the inputs are there, as far as the first rank has looked
};

// Returns the same report on every rank but `seconds` and `has_text`.
// Throws Stopped, on all ranks, if any of them was asked to stop.
// Errors: see documents.hpp; `out` exists but was made from something else (says what to do). Text
// is told by its content, wherever it lies; a complete `out` does not need it any more.
PrepareReport prepare_tokens(const PrepareOptions& options);

// As a complete token file tells it: without `seconds` and `already_complete`.
PrepareReport report_of(const std::filesystem::path& tokens);

}  // namespace smalltalk
