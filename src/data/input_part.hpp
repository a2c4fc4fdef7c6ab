// Parts of the input files, so that several ranks can share one. Private to src/data.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <vector>

#include "smalltalk/data/documents.hpp"

namespace smalltalk {

// The lines of `file` that begin in bytes [begin, end). Only lines without compression are ever
// cut; all else is one part, from 0 to the file's end.
struct InputPart {
  int64_t file = 0;  // index into the list of files
  int64_t begin = 0;
  int64_t end = 0;
  int64_t bytes() const { return end - begin; }
};

// Whether a .json file holds an array, or values over several lines, rather than a value a line:
// its first line begins with '[' or is but '{', which no line of a document is.
bool holds_values(const std::filesystem::path& file);

// Cuts files into parts, in order. A function of the files alone: what comes of them must not
// change with the number of ranks.
std::vector<InputPart> cut_into_parts(const std::vector<std::filesystem::path>& files,
                                      const DocumentFields& fields = {});
// Neighbouring parts together, until they are worth a file of their own: the unit of resumption.
std::vector<std::vector<InputPart>> bundle(const std::vector<InputPart>& parts);

// As read_documents(), of one part. `take` returns false to stop early.
BadDocuments read_part(const std::filesystem::path& file, const InputPart& part,
                       const std::function<bool(const Document&)>& take,
                       const DocumentFields& fields = {});

}  // namespace smalltalk
