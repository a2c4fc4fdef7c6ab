#include "smalltalk/data/documents.hpp"

#include <map>

#include "data/input_part.hpp"
#include "files.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

using namespace test;

struct Read {
  std::vector<std::string> texts;
  std::vector<std::string> domains;
  BadDocuments bad;
};

Read read_all(const std::filesystem::path& file) {
  Read read;
  read.bad = read_documents(file, [&](const Document& document) {
    read.texts.emplace_back(document.text);
    read.domains.emplace_back(document.domain);
  });
  return read;
}

std::vector<std::string> names_of(const std::vector<std::filesystem::path>& files) {
  std::vector<std::string> names;
  for (const auto& file : files) names.push_back(file.filename().string());
  return names;
}

TEST(Documents, TextAndDomainOfJsonLines) {
  const TemporaryFolder folder;
  const Read read =
      read_all(write_bytes(folder / "a.jsonl",
                           "{\"text\":\"one\\n\\u00e9 \\ud83d\\ude00\",\"domain\":\"d\"}\r\n\n   "
                           "\n{\"x\":1,\"text\":\"two\"}"));
  EXPECT_EQ(read.texts, (std::vector<std::string>{"one\né 😀", "two"}));
  EXPECT_EQ(read.domains, (std::vector<std::string>{"d", ""}));
  EXPECT_EQ(read.bad.documents, 2);
  EXPECT_EQ(read.bad.bad(), 0);
}

TEST(Documents, KeepsNulAndSkipsTheByteOrderMark) {
  const TemporaryFolder folder;
  const Read read =
      read_all(write_bytes(folder / "a.jsonl", "\xEF\xBB\xBF{\"text\":\"a\\u0000b\"}\n"));
  ASSERT_EQ(read.texts.size(), 1u);
  EXPECT_EQ(read.texts[0], std::string("a\0b", 3));
  const Read plain = read_all(write_bytes(folder / "a.txt", std::string("\xEF\xBB\xBFx\0y", 6)));
  EXPECT_EQ(plain.texts[0], std::string("x\0y", 3));
}

TEST(Documents, BadOnesAreCountedAndNamedWithTheirLine) {
  const TemporaryFolder folder;
  const auto file = write_bytes(folder / "bad.jsonl",
                                "{\"text\":\"good\"}\n"
                                "{\"text\":\"cut\n"
                                "\n"
                                "{\"text\":\"\xff\xfe\"}\n"
                                "{\"text\":\" \\n\\t\"}\n"
                                "{\"texts\":\"no\"}\n"
                                "{\"text\":\"x\"} behind\n"
                                "[1]\n"
                                "{\"text\":\"also good\"}\n");
  const Read read = read_all(file);
  EXPECT_EQ(read.texts, (std::vector<std::string>{"good", "also good"}));
  EXPECT_EQ(read.bad.documents, 8);
  EXPECT_EQ(read.bad.broken_json, 4);
  EXPECT_EQ(read.bad.bad_utf8, 1);
  EXPECT_EQ(read.bad.empty, 1);
  ASSERT_EQ(read.bad.examples.size(), 6u);
  EXPECT_TRUE(read.bad.examples[0].starts_with(file.string() + ":2: broken JSON"));
  EXPECT_EQ(read.bad.examples[1], file.string() + ":4: not UTF-8");
  EXPECT_EQ(read.bad.examples[2], file.string() + ":5: empty text");
  EXPECT_TRUE(mentions(read.bad.examples[4], ":7: broken JSON"));
}

TEST(Documents, GivesAtMostTenExamples) {
  const TemporaryFolder folder;
  std::string lines;
  for (int i = 0; i < 50; ++i) lines += "{\n";
  EXPECT_EQ(read_all(write_bytes(folder / "a.jsonl", lines)).bad.examples.size(), 10u);
}

TEST(Documents, CompressionChangesNothing) {
  const TemporaryFolder folder;
  const std::string lines = json_lines(made_up_documents(3000));
  const Read plain = read_all(write_bytes(folder / "a.jsonl", lines));
  EXPECT_EQ(plain.texts.size(), 3000u);
  EXPECT_EQ(read_all(write_gzip(folder / "b.jsonl.gz", lines)).texts, plain.texts);
  EXPECT_EQ(read_all(write_zstd(folder / "c.jsonl.zst", lines)).texts, plain.texts);
  // Members and frames one behind the other, as `cat` makes them.
  const size_t half = lines.size() / 2;
  for (const char* name : {"d.jsonl.gz", "d.jsonl.zst"}) {
    const bool gzip = std::string(name).ends_with(".gz");
    const auto write = gzip ? write_gzip : write_zstd;
    const std::string first = read_text(write(folder / "first", lines.substr(0, half)));
    const std::string second = read_text(write(folder / "second", lines.substr(half)));
    EXPECT_EQ(read_all(write_bytes(folder / name, first + second)).texts, plain.texts) << name;
  }
}

TEST(Documents, TruncatedStreamsAreErrors) {
  const TemporaryFolder folder;
  const std::string lines = json_lines(made_up_documents(2000));
  for (const char* name : {"a.jsonl.gz", "a.jsonl.zst"}) {
    const auto write = std::string(name).ends_with(".gz") ? write_gzip : write_zstd;
    const std::string whole = read_text(write(folder / name, lines));
    for (const size_t size :
         {size_t{0}, size_t{1}, size_t{5}, whole.size() / 2, whole.size() - 1}) {
      const auto file = write_bytes(folder / name, std::string_view(whole).substr(0, size));
      const std::string complaint = complaint_of([&] { read_all(file); });
      EXPECT_TRUE(mentions(complaint, file.string())) << size << " of " << whole.size();
      EXPECT_TRUE(mentions(complaint, "truncated")) << size << " of " << whole.size();
    }
    std::string damaged = whole;
    damaged[whole.size() / 2] = static_cast<char>(damaged[whole.size() / 2] ^ 0x55);
    const auto file = write_bytes(folder / name, damaged);
    EXPECT_TRUE(mentions(complaint_of([&] { read_all(file); }), file.string()));
  }
}

// The checksum of gzip covers every bit of its content, and of the header's flags some change
// nothing: an Error, or the same documents. Of a second member too, which readers may take for
// garbage behind the first.
TEST(Documents, NoBitOfACompressedFileIsLost) {
  const TemporaryFolder folder;
  const std::string lines = json_lines(made_up_documents(5), "zoo");
  for (const char* name : {"a.jsonl.gz", "a.jsonl.zst"}) {
    const bool gzip = std::string(name).ends_with(".gz");
    const std::string one =
        read_text(gzip ? write_gzip(folder / name, lines) : write_zstd(folder / name, lines));
    const std::string whole = one + one;
    const Read expected = read_all(write_bytes(folder / name, whole));
    ASSERT_EQ(expected.texts.size(), 10u);
    for (size_t i = 0; i < 8 * whole.size(); ++i) {
      std::string bytes = whole;
      bytes[i / 8] = static_cast<char>(bytes[i / 8] ^ (1 << i % 8));
      const auto file = write_bytes(folder / name, bytes);
      Read read;
      const std::string complaint = complaint_of([&] { read = read_all(file); });
      if (complaint.empty()) {
        EXPECT_EQ(read.texts, expected.texts) << name << " bit " << i;
        EXPECT_EQ(read.domains, expected.domains) << name << " bit " << i;
      } else {
        EXPECT_TRUE(mentions(complaint, file.string()));
      }
    }
    for (size_t size = 0; size < whole.size(); ++size) {
      if (size == one.size()) continue;  // whole
      const auto file = write_bytes(folder / name, std::string_view(whole).substr(0, size));
      EXPECT_TRUE(mentions(complaint_of([&] { read_all(file); }), "truncated")) << size;
    }
    const auto file = write_bytes(folder / name, whole + "garbage");
    EXPECT_TRUE(mentions(complaint_of([&] { read_all(file); }), name));
  }
}

// 300 MiB in a file of some 30 KiB (or 300): as one line, and as one text.
TEST(Documents, ABombIsAnErrorInBoundedMemory) {
  const TemporaryFolder folder;
  for (const char* name : {"a.jsonl.gz", "a.jsonl.zst", "a.txt.zst"}) {
    const auto write = std::string(name).ends_with(".gz") ? &gzip_of_zeros : &zstd_of_zeros;
    const auto file = write(folder / name, int64_t{300} << 20);
    ASSERT_LT(std::filesystem::file_size(file), 1u << 20);
    [[maybe_unused]] const int64_t before = peak_memory_bytes();
    EXPECT_TRUE(mentions(complaint_of([&] { read_all(file); }), file.string() + ": unpacks to"));
#if !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)  // they need several times as much
    EXPECT_LT(peak_memory_bytes() - before, int64_t{1} << 30) << name;
#endif
  }
}

// A frame's header can ask for 2 GiB.
TEST(Documents, ASmallFileGetsNoLargeWindow) {
  const TemporaryFolder folder;
  const std::string frame("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00", 9);
  const auto file = write_bytes(folder / "a.jsonl.zst", frame);
  EXPECT_TRUE(mentions(complaint_of([&] { read_all(file); }), "too much memory"));
}

TEST(Documents, DomainsAreCoarseLabels) {
  const TemporaryFolder folder;
  const Read read =
      read_all(write_bytes(folder / "a.jsonl", json_lines({"a"}, std::string(256, 'd')) +
                                                   json_lines({"b"}, std::string(257, 'd')) +
                                                   json_lines({"c"}, "\\u0000")));
  EXPECT_EQ(read.texts, std::vector<std::string>{"a"});
  EXPECT_EQ(read.bad.broken_json, 2);
}

// Deeper than any parser may recurse, and without an end.
TEST(Documents, DeepNestingIsBrokenJson) {
  const TemporaryFolder folder;
  const std::string deep(1 << 20, '[');
  const Read read = read_all(write_bytes(folder / "a.jsonl", deep + "\n{\"text\":" + deep + "\n"));
  EXPECT_EQ(read.bad.broken_json, 2);
}

TEST(Documents, AVeryLongLineIsRead) {
  const TemporaryFolder folder;
  const std::string text(3'000'000, 'x');
  const Read read = read_all(write_bytes(folder / "a.jsonl", json_lines({"a", text, "b"})));
  ASSERT_EQ(read.texts.size(), 3u);
  EXPECT_EQ(read.texts[1], text);
}

TEST(Documents, APlainFileIsOneDocument) {
  const TemporaryFolder folder;
  EXPECT_EQ(read_all(write_bytes(folder / "a.txt", "a\nb\n")).texts,
            std::vector<std::string>{"a\nb\n"});
  EXPECT_EQ(read_all(write_bytes(folder / "b.txt", " \n")).bad.empty, 1);
  EXPECT_EQ(read_all(write_bytes(folder / "c.txt", "\xc3")).bad.examples[0],
            (folder / "c.txt").string() + ":1: not UTF-8");
}

TEST(Documents, BlocksReadEveryLineOnceWithItsNumber) {
  const TemporaryFolder folder;
  std::string lines;
  for (int i = 0; i < 40; ++i) {
    lines +=
        i % 10 == 9 ? "broken\n" : json_lines({std::string(static_cast<size_t>(i), 'y') + "."});
  }
  const auto file = write_bytes(folder / "a.jsonl", lines);
  const Read whole = read_all(file);
  const auto size = static_cast<int64_t>(lines.size());
  for (int64_t step : {1, 2, 7, 13, 50, 333}) {
    std::vector<std::string> texts;
    BadDocuments bad;
    for (int64_t begin = 0; begin < size; begin += step) {
      bad.add(
          read_part(file, {0, begin, std::min(begin + step, size)}, [&](const Document& document) {
            texts.emplace_back(document.text);
            return true;
          }));
    }
    EXPECT_EQ(texts, whole.texts) << step;
    EXPECT_EQ(bad.examples, whole.bad.examples) << step;
    EXPECT_EQ(bad.documents, whole.bad.documents) << step;
  }
  EXPECT_TRUE(whole.bad.examples[3].starts_with(file.string() + ":40: "));
}

TEST(Inputs, FilesFoldersAndGlobsInOrder) {
  const TemporaryFolder folder;
  for (const char* name : {"b.jsonl", "a.txt", "sub/c.jsonl.gz", "sub/.hidden.txt", ".git/d.txt",
                           "notes.md", "more.md", "LICENSE", "e.txt.bz2"}) {
    write_bytes(folder / name, "x");
  }
  const InputFiles found = expand_inputs({folder.path().string()});
  EXPECT_EQ(names_of(found.files), (std::vector<std::string>{"a.txt", "b.jsonl", "c.jsonl.gz"}));
  EXPECT_EQ(found.left_out, (Counts{{"", 1}, {".bz2", 1}, {".md", 2}}));
  refuse_left_out(found, 4.0 / 7);
  EXPECT_TRUE(mentions(complaint_of([&] { refuse_left_out(found, 0.57); }),
                       "4 of 7 files in the folders cannot be read as text (1 without an "
                       "extension, 1 .bz2, 2 .md)"));
  const InputFiles named =
      expand_inputs({(folder / "b.jsonl").string(), (folder / "*.txt").string()});
  EXPECT_EQ(names_of(named.files), (std::vector<std::string>{"b.jsonl", "a.txt"}));
  EXPECT_TRUE(named.left_out.empty());
}

TEST(Inputs, AreKnownByManyExtensions) {
  const TemporaryFolder folder;
  const std::string line = "{\"text\":\"a\"}\n";
  for (const char* kind : {"jsonl", "ndjson", "json", "jsonlines", "JSONL"}) {
    const std::string name = std::string("a.") + kind;
    EXPECT_EQ(read_all(write_bytes(folder / name, line)).texts, std::vector<std::string>{"a"});
    for (const char* packed : {".gz", ".gzip", ".GZ"}) {
      const auto file = write_gzip(folder / (name + packed), line);
      EXPECT_EQ(read_all(file).texts, std::vector<std::string>{"a"}) << file;
    }
    for (const char* packed : {".zst", ".zstd"}) {
      const auto file = write_zstd(folder / (name + packed), line);
      EXPECT_EQ(read_all(file).texts, std::vector<std::string>{"a"}) << file;
    }
  }
  for (const char* name : {"b.txt.gz", "b.txt.gzip", "b.TXT.gz"}) {
    EXPECT_EQ(read_all(write_gzip(folder / name, line)).texts, std::vector<std::string>{line});
  }
  EXPECT_EQ(expand_inputs({folder.path().string()}).files.size(), 5u * 6 + 3);
}

// Links to files, to folders, and back to where they lie.
TEST(Inputs, LinksLeadToNoFileTwiceAndToNoEnd) {
  const TemporaryFolder folder;
  write_bytes(folder / "outside/c.txt", "x");
  for (const char* name : {"in/b.txt", "in/sub/a.txt"}) write_bytes(folder / name, "x");
  for (const auto& [to, name] : std::map<std::string, std::string>{{"in/sub", "in/d"},
                                                                   {"in", "in/sub/loop"},
                                                                   {"outside", "in/o"},
                                                                   {"in/b.txt", "in/z.txt"},
                                                                   {"nowhere", "in/lost.txt"}}) {
    std::filesystem::create_symlink(folder / to, folder / name);
  }
  const InputFiles found = expand_inputs({(folder / "in").string()});
  EXPECT_EQ(names_of(found.files), (std::vector<std::string>{"b.txt", "a.txt", "c.txt"}));
  EXPECT_EQ(found.files[1], folder / "in/d/a.txt");  // the first of two ways
  EXPECT_EQ(found.left_out, (Counts{{".txt", 1}}));
  // What is named twice is meant twice.
  const std::string twice = (folder / "outside/c.txt").string();
  EXPECT_EQ(expand_inputs({twice, twice}).files.size(), 2u);
}

TEST(Inputs, AreNamedByLists) {
  const TemporaryFolder folder;
  for (const char* name : {"a.txt", "b b.txt", "c/d.txt"}) write_bytes(folder / name, "x");
  const std::string root = folder.path().string() + "/";
  const auto list = write_bytes(
      folder / "list", "\xEF\xBB\xBF" + root + "b b.txt\r\n\n" + root + "c\n" + root + "a*.txt");
  EXPECT_EQ(names_of(expand_inputs({"@" + list.string()}).files),
            (std::vector<std::string>{"b b.txt", "d.txt", "a.txt"}));
  write_bytes(list, root + "a.txt\n\n" + root + "no.txt\n");
  EXPECT_TRUE(mentions(complaint_of([&] { expand_inputs({"@" + list.string()}); }),
                       list.string() + ":3: " + root + "no.txt: no such file"));
  write_bytes(list, "\n");
  EXPECT_TRUE(
      mentions(complaint_of([&] { expand_inputs({"@" + list.string()}); }), "names no file"));
}

// As an empty shard of Spark's.
TEST(Inputs, AnEmptyFileMayComeFirst) {
  const TemporaryFolder folder;
  for (const char* name : {"a.jsonl", "a.txt", "a.json"}) {
    const auto empty = write_bytes(folder / name, ""),
               text = write_bytes(folder / "b.jsonl", json_lines({"b"}));
    const auto bundles = bundle(cut_into_parts({empty, text}));
    ASSERT_EQ(bundles.size(), 1u);
    EXPECT_EQ(bundles[0].size(), 2u);
    EXPECT_EQ(bundle(cut_into_parts({empty})).size(), 1u);
  }
  EXPECT_TRUE(bundle({}).empty());
}

TEST(Inputs, HardLinksLeadToNoFileTwiceAndALinkToItselfIsLeftOut) {
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder / "d");
  write_bytes(folder / "d/a.jsonl", json_lines({"a"}));
  std::filesystem::create_hard_link(folder / "d/a.jsonl", folder / "d/b.jsonl");
  std::filesystem::create_symlink("self", folder / "d/self");
  const InputFiles found = expand_inputs({(folder / "d").string()});
  EXPECT_EQ(names_of(found.files), std::vector<std::string>{"a.jsonl"});
  EXPECT_EQ(found.left_out, (Counts{{"", 1}}));
}

TEST(Inputs, SmallFilesShareAPart) {
  std::vector<InputPart> parts;
  for (int64_t i = 0; i < 100'000; ++i) parts.push_back({i, 0, 1000});
  const auto bundles = bundle(parts);
  EXPECT_LE(bundles.size(), 100u);  // of 1 MiB
  int64_t file = 0;
  for (const auto& some : bundles) {
    for (const InputPart& part : some) EXPECT_EQ(part.file, file++);
  }
  EXPECT_EQ(file, 100'000);
}

TEST(Inputs, RefusesWhatMatchesNothingOrIsOfUnknownKind) {
  const TemporaryFolder folder;
  const auto unknown = write_bytes(folder / "a.parquet", "x");
  EXPECT_TRUE(mentions(complaint_of([&] { expand_inputs({unknown.string()}); }), "a.parquet"));
  EXPECT_TRUE(mentions(complaint_of([&] { expand_inputs({(folder / "**/*.txt").string()}); }),
                       "** stands for one folder only"));
  EXPECT_TRUE(mentions(complaint_of([&] { expand_inputs({(folder / "*.txt").string()}); }),
                       "no file matches"));
  EXPECT_TRUE(
      mentions(complaint_of([&] { expand_inputs({folder.path().string()}); }), "holds no file"));
}

}  // namespace
}  // namespace smalltalk
