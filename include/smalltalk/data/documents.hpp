// Documents from files: JSON (a document a line, or in an array), plain text (a document a file, or
// a line), both also compressed; files, folders, globs and lists of them. Streaming: memory does
// not grow with the corpus.
//
// JSON is read as Python's json and jq read it, beyond what its standard allows: NaN and Infinity,
// integers of any length, the last of two fields of one name. A .json file that begins with an
// array, or with an object of several lines, may have line ends anywhere. Byte order marks at the
// beginning of any line, CRLF, and zeros behind a compressed stream, as tapes have them, are no
// text. All that is counted.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace smalltalk {

using Counts = std::map<std::string, int64_t>;  // of things by what they are called
std::string describe(const Counts& counts);     // "3 .md, 1 .parquet"

// By its name.
enum class FileKind { json, plain_text, unknown };
FileKind kind_of(const std::filesystem::path& path);  // compression aside
bool is_compressed(const std::filesystem::path& path);
std::filesystem::path without_compression(const std::filesystem::path& path);  // a.txt, of a.txt.gz

struct Document {
  std::string_view text;
  std::string_view domain;  // empty if the input names none
};

// Of a file of plain text: whether it is too large for one document, and begins with many short
// lines, so that each of them may be meant as one. Error: the file cannot be read.
bool looks_like_lines(const std::filesystem::path& file);

// Where a document lies in a file.
struct DocumentFields {
  // Of a JSON object, the field with this name; without one, "a.b" is b of the object a. Names may
  // hold dots.
  std::string text = "text";
  std::string domain = "domain";  // the same; empty: there are no labels
  bool lines = false;             // of plain text, each line is a document
  bool blank = false;             // a JSON line's text may be nothing but white space
};

// What was left out, and where it was first seen; and what was read although it breaks a rule.
struct BadDocuments {
  int64_t documents = 0;  // read in all, bad ones included
  int64_t bad_utf8 = 0;
  int64_t empty = 0;
  int64_t broken_json = 0;
  std::vector<std::string> examples;  // at most 10: "file:line: reason"
  Counts bent;                        // "NaN or Infinity" -> how many lines have any
  int64_t bad() const { return bad_utf8 + empty + broken_json; }
  void add(const BadDocuments& other);
};

// Error: the files begin with documents of which none is good, as when a field's name is wrong.
// Looks at the beginnings of the first files alone.
void require_good_documents(const std::vector<std::filesystem::path>& files,
                            const DocumentFields& fields);

struct InputFiles {
  std::vector<std::filesystem::path> files;  // to be read, in order
  // What folders hold beside them: how many files of each extension, which may be "".
  Counts left_out;
};

// Files named by paths, folders and globs, in lexicographic order of each input. Of a folder: all
// below it, each once, however links lead there, but those whose name, or a folder's on the way,
// begins with a dot. "@LIST" is a file of such inputs, a line each.
// Error: an input that matches nothing, or names a file of unknown kind.
InputFiles expand_inputs(const std::vector<std::string>& inputs);
// Of text. What a compressed file holds is guessed: four times its size.
int64_t unpacked_bytes(const std::vector<std::filesystem::path>& files);
// Error: of all files the share of those left out is larger.
void refuse_left_out(const InputFiles& inputs, double max_bad_fraction);

// Calls `take` for each good document of one file, in order. Returns what was left out. A file of
// unknown kind is plain text.
BadDocuments read_documents(const std::filesystem::path& file,
                            const std::function<void(const Document&)>& take,
                            const DocumentFields& fields = {});

// Rows of JSON that are no documents, read in the same way: calls take(row, "file:line") for each,
// where it begins. NaN, Infinity and numbers beyond 64 bits are null in it. Error:
// the file cannot be read, or a row is not UTF-8, once the others are taken.
using TakeRow = std::function<void(const std::string& row, const std::string& place)>;
void read_json_rows(const std::filesystem::path& file, const TakeRow& take);

}  // namespace smalltalk
