#include "smalltalk/data/prepare.hpp"

#include <set>

#include "data/input_part.hpp"
#include "files.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

using namespace test;

class PrepareTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    set_log_muted(true);
    folder_ = new TemporaryFolder;
    const auto documents = made_up_documents(9000);
    const std::vector<std::string> some(documents.begin(), documents.begin() + 300);
    // More than one block's worth in one file, beside others of every kind.
    write_bytes(*folder_ / "text/large.jsonl",
                json_lines(documents, "zoo") + json_lines(some) + json_lines(some, "ant"));
    write_gzip(*folder_ / "text/some.jsonl.gz", json_lines(some, "bee"));
    write_zstd(*folder_ / "text/some.txt.zst", some[0]);
    write_bytes(*folder_ / "text/one.txt", some[1]);
    train_tokenizer({text()}, 400, 100'000, *folder_ / "tokenizer.model");
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
    set_log_muted(false);
  }

  static std::string text() { return (*folder_ / "text").string(); }
  static PrepareOptions options(const std::string& input, const std::string& out) {
    PrepareOptions options;
    options.inputs = {input};
    options.tokenizer = *folder_ / "tokenizer.model";
    options.out = *folder_ / out;
    return options;
  }

  // Runs all ranks as threads and returns their reports.
  static std::vector<PrepareReport> run(const PrepareOptions& options, int num_ranks) {
    std::vector<PrepareReport> reports(static_cast<size_t>(num_ranks));
    run_thread_ranks(num_ranks, [&](const HostCollectives& ranks) {
      PrepareOptions mine = options;
      mine.ranks = ranks;
      reports[static_cast<size_t>(ranks.rank)] = prepare_tokens(mine);
    });
    return reports;
  }

  static TemporaryFolder* folder_;
};
TemporaryFolder* PrepareTest::folder_ = nullptr;

// Every document is there, once and whole, and begins a sequence or fits into one.
TEST_F(PrepareTest, DocumentsAreWholeWhenTheyArePacked) {
  constexpr uint64_t kLength = 64;
  run(options(text(), "plain.h5"), 1);
  PrepareOptions packing = options(text(), "packed.h5");
  packing.packed_length = kLength;
  run(packing, 3);
  PrepareOptions again = packing;
  again.out = *folder_ / "packed-again.h5";
  run(again, 1);
  EXPECT_EQ(read_text(packing.out), read_text(again.out));

  const auto documents_of = [&](const TokenFile& file, bool packed) {
    std::multiset<std::vector<int64_t>> documents;
    uint64_t begin = packed ? 1 : 0;
    for (const uint64_t end : file.document_ends()) {
      std::vector<int64_t> tokens(end - begin);
      file.read(static_cast<int64_t>(begin), tokens);
      while (tokens.size() > 1 && tokens[tokens.size() - 2] == kEndToken) tokens.pop_back();
      const uint64_t into = (begin - 1) % kLength;
      EXPECT_TRUE(!packed || into == 0 || into + tokens.size() <= kLength);
      documents.insert(tokens);
      begin = end;
    }
    return documents;
  };
  const TokenFile plain(*folder_ / "plain.h5"), packed(packing.out);
  EXPECT_TRUE(documents_of(packed, true) == documents_of(plain, false));
  EXPECT_EQ(packed.info().num_tokens, plain.info().num_tokens + packed.info().padding);
  EXPECT_EQ(packed.info().num_tokens % static_cast<int64_t>(kLength), 1);
  EXPECT_EQ(packed.info().text_bytes, plain.info().text_bytes);
  EXPECT_EQ(packed.document_ends().back(), static_cast<uint64_t>(packed.info().num_tokens));
  std::vector<int64_t> first(1);
  packed.read(0, first);
  EXPECT_EQ(first[0], kEndToken);

  // Packed otherwise, it is another file.
  packing.packed_length = 32;
  EXPECT_TRUE(mentions(complaint_of([&] { run(packing, 1); }), "packed otherwise"));
}

TEST_F(PrepareTest, TheBytesDoNotDependOnTheRanks) {
  ASSERT_GE(cut_into_parts(expand_inputs({text()}).files).size(), 5u);
  const PrepareReport alone = prepare_tokens(options(text(), "1.h5"));
  const std::string expected = read_text(*folder_ / "1.h5");
  for (const int num_ranks : {1, 2, 3, 5, 11}) {
    const std::string out = "ranks" + std::to_string(num_ranks) + ".h5";
    const auto reports = run(options(text(), out), num_ranks);
    EXPECT_TRUE(read_text(*folder_ / out) == expected) << num_ranks;
    EXPECT_FALSE(std::filesystem::exists(*folder_ / (out + ".parts")));
    for (const PrepareReport& report : reports) {
      EXPECT_EQ(report.info.content_hash, alone.info.content_hash);
      EXPECT_EQ(report.bad.documents, alone.bad.documents);
      EXPECT_FALSE(report.already_complete);
    }
  }
}

TEST_F(PrepareTest, TheTokensAreThoseOfTheDocumentsInOrder) {
  prepare_tokens(options(text(), "order.h5"));
  const TokenFile file(*folder_ / "order.h5");
  const Tokenizer tokenizer(*folder_ / "tokenizer.model");
  const Domains domains = read_domains(*folder_ / "order.h5");
  const auto ends = file.document_ends();
  EXPECT_EQ(domains.names, (std::vector<std::string>{"unknown", "ant", "bee", "zoo"}));
  std::vector<int64_t> tokens(static_cast<size_t>(file.info().num_tokens));
  file.read(0, tokens);
  uint64_t begin = 0;
  size_t i = 0;
  int64_t text_bytes = 0;
  for (const auto& input : expand_inputs({text()}).files) {
    read_documents(input, [&](const Document& document) {
      const std::vector<int32_t> ids = tokenizer.encode(document.text);
      ASSERT_LT(i, ends.size());
      ASSERT_EQ(ends[i], begin + ids.size() + 1);
      ASSERT_TRUE(std::equal(ids.begin(), ids.end(), tokens.begin() + static_cast<int64_t>(begin)));
      EXPECT_EQ(tokens[ends[i] - 1], kEndToken);
      EXPECT_EQ(domains.names[domains.of_document[i]],
                document.domain.empty() ? "unknown" : document.domain);
      begin = ends[i++];
      text_bytes += static_cast<int64_t>(document.text.size());
    });
  }
  EXPECT_EQ(i, ends.size());
  EXPECT_EQ(file.info().text_bytes, text_bytes);
  EXPECT_EQ(file.info().vocab_size, 400);
  EXPECT_EQ(file.info().tokenizer_hash, tokenizer.hash());
}

TEST_F(PrepareTest, SaysWhatItBentAndLeftOut) {
  const auto bent = write_bytes(*folder_ / "bent/a.jsonl",
                                "\xEF\xBB\xBF{\"text\":\"ka\",\"x\":NaN}\r\n{\"text\":\"to\"}\r\n");
  write_bytes(*folder_ / "bent/README.md", "x");
  PrepareOptions some = options((*folder_ / "bent").string(), "bent.h5");
  EXPECT_TRUE(mentions(complaint_of([&] { prepare_tokens(some); }), "1 of 2 files"));
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "bent.h5"));
  some.max_bad_fraction = 0.5;
  for (const bool complete : {false, true}) {
    const PrepareReport report = prepare_tokens(some);
    EXPECT_EQ(report.already_complete, complete);
    EXPECT_EQ(report.bad.bent,
              (Counts{{"CRLF", 2}, {"NaN or Infinity", 1}, {"byte order mark", 1}}));
    EXPECT_EQ(report.left_out, (Counts{{".md", 1}}));
  }
}

TEST_F(PrepareTest, TheFieldsAreChosen) {
  const auto file =
      write_bytes(*folder_ / "fields.jsonl",
                  "{\"text\":\"ka\",\"body\":\"to mi\",\"set\":{\"name\":\"zoo\"}}\n");
  PrepareOptions some = options(file.string(), "fields.h5");
  some.fields = {"body", "set.name", false};
  prepare_tokens(some);
  const Tokenizer tokenizer(*folder_ / "tokenizer.model");
  EXPECT_EQ(TokenFile(*folder_ / "fields.h5").info().num_tokens,
            std::ssize(tokenizer.encode("to mi")) + 1);
  EXPECT_EQ(read_domains(*folder_ / "fields.h5").names.back(), "zoo");
  EXPECT_EQ(prepare_tokens(some).num_domains, 1);
  some.fields.domain = "";
  EXPECT_TRUE(mentions(complaint_of([&] { prepare_tokens(some); }), "from other fields"));
}

TEST_F(PrepareTest, OfManyDomainsTheLargestKeepTheirNames) {
  std::string lines;
  for (int i = 0; i < 70'000; ++i) {
    lines += json_lines({"ka"}, "host" + std::to_string(i) + ".example");
    if (i % 100 == 0) lines += json_lines({"to", "mi"}, "host" + std::to_string(i) + ".example");
  }
  const auto file = write_bytes(*folder_ / "hosts.jsonl", lines);
  prepare_tokens(options(file.string(), "hosts.h5"));
  const Domains domains = read_domains(*folder_ / "hosts.h5");
  ASSERT_EQ(domains.names.size(), 1001u);
  const auto place_of = [&](const std::string& name) {
    return std::ranges::find(domains.names, name) - domains.names.begin();
  };
  for (int i = 0; i < 70'000; i += 100) {
    EXPECT_LE(place_of("host" + std::to_string(i) + ".example"), 1000) << i;
  }
  EXPECT_EQ(domains.names[domains.of_document[0]], "host0.example");
  EXPECT_EQ(std::ranges::count(domains.of_document, uint16_t{0}), 70'000 - 1000);
}

TEST_F(PrepareTest, ManySmallFilesCostFewParts) {
  for (int i = 0; i < 300; ++i) {
    write_bytes(*folder_ / ("small/" + std::to_string(i) + ".txt"), "ka to");
  }
  PrepareOptions killed = options((*folder_ / "small").string(), "small.h5");
  killed.ranks.all_reduce_max = [](std::span<double>) { throw Error("killed"); };
  EXPECT_EQ(complaint_of([&] { prepare_tokens(killed); }), "killed");
  int files = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(*folder_ / "small.h5.parts")) {
    files += entry.is_regular_file();
  }
  EXPECT_EQ(files, 1);
  EXPECT_EQ(prepare_tokens(options((*folder_ / "small").string(), "small.h5")).bad.documents, 300);
}

TEST_F(PrepareTest, ASecondRunIsAQuickSuccess) {
  const PrepareReport first = run(options(text(), "twice.h5"), 2)[0];
  const auto before = std::filesystem::last_write_time(*folder_ / "twice.h5");
  for (const PrepareReport& report : run(options(text(), "twice.h5"), 3)) {
    EXPECT_TRUE(report.already_complete);
    EXPECT_EQ(report.info.num_tokens, first.info.num_tokens);
    EXPECT_EQ(report.bad.documents, first.bad.documents);
  }
  EXPECT_EQ(std::filesystem::last_write_time(*folder_ / "twice.h5"), before);
}

TEST_F(PrepareTest, AFileFromSomethingElseIsAnError) {
  const auto one = (*folder_ / "text/one.txt").string();
  prepare_tokens(options(one, "else.h5"));
  EXPECT_TRUE(mentions(complaint_of([&] { prepare_tokens(options(text(), "else.h5")); }),
                       "from other inputs"));
  train_tokenizer({text()}, 390, 100'000, *folder_ / "other.model");
  PrepareOptions other = options(one, "else.h5");
  other.tokenizer = *folder_ / "other.model";
  EXPECT_TRUE(mentions(complaint_of([&] { prepare_tokens(other); }), "with another tokenizer"));
}

TEST_F(PrepareTest, GoesOnFromThePartsThatAreThere) {
  // Killed half-way: rank 0 of 2 has done its blocks, rank 1 has not begun.
  PrepareOptions killed = options(text(), "resumed.h5");
  killed.ranks.size = 2;
  killed.ranks.all_reduce_max = [](std::span<double>) { throw Error("killed"); };
  EXPECT_EQ(complaint_of([&] { prepare_tokens(killed); }), "killed");
  std::vector<std::filesystem::path> parts;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(*folder_ / "resumed.h5.parts")) {
    if (entry.is_regular_file()) parts.push_back(entry.path());
  }
  ASSERT_GE(parts.size(), 2u);
  // One of them was damaged by the crash: it is made again.
  std::filesystem::resize_file(parts[0], std::filesystem::file_size(parts[0]) - 3);
  run(options(text(), "resumed.h5"), 3);
  prepare_tokens(options(text(), "unbroken.h5"));
  EXPECT_TRUE(read_text(*folder_ / "resumed.h5") == read_text(*folder_ / "unbroken.h5"));
}

TEST_F(PrepareTest, TooManyBadDocumentsAreRefusedWithTheirPlaces) {
  const auto file = write_bytes(*folder_ / "bad.jsonl",
                                "{\"text\":\"ka\"}\n{\"text\":\n"
                                "{\"text\":\"to\"}\n{\"text\":\"mi\"}\n");
  PrepareOptions strict = options(file.string(), "bad.h5");
  const std::string complaint = complaint_of([&] { prepare_tokens(strict); });
  EXPECT_TRUE(mentions(complaint, "1 of 4 documents are bad"));
  EXPECT_TRUE(mentions(complaint, file.string() + ":2: broken JSON"));
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "bad.h5"));
  strict.max_bad_fraction = 0.25;
  const PrepareReport report = prepare_tokens(strict);
  EXPECT_EQ(report.bad.broken_json, 1);
  EXPECT_EQ(report.info.num_documents, 3);
  // The threshold holds for a file that exists, too.
  strict.max_bad_fraction = 0.2;
  EXPECT_TRUE(mentions(complaint_of([&] { prepare_tokens(strict); }), ":2: broken JSON"));
}

TEST_F(PrepareTest, LineNumbersAreRightInAFileThatIsShared) {
  const auto documents = made_up_documents(9000, 5);
  const auto file = write_bytes(*folder_ / "shared.jsonl", json_lines(documents) + "broken\n");
  ASSERT_GE(cut_into_parts({file}).size(), 2u);
  EXPECT_TRUE(mentions(complaint_of([&] { run(options(file.string(), "shared.h5"), 3); }),
                       file.string() + ":9001: broken JSON"));
}

TEST_F(PrepareTest, NoDocumentsAreAnError) {
  const auto file = write_bytes(*folder_ / "none.jsonl", "\n\n");
  EXPECT_TRUE(mentions(complaint_of([&] { prepare_tokens(options(file.string(), "none.h5")); }),
                       "no documents"));
}

TEST_F(PrepareTest, ATruncatedInputIsAnErrorThatNamesIt) {
  const std::string whole = read_text(*folder_ / "text/some.jsonl.gz");
  const auto file = write_bytes(*folder_ / "cut.jsonl.gz", whole.substr(0, whole.size() - 9));
  EXPECT_TRUE(mentions(complaint_of([&] { prepare_tokens(options(file.string(), "cut.h5")); }),
                       "cut.jsonl.gz"));
  EXPECT_FALSE(std::filesystem::exists(*folder_ / "cut.h5"));
}

}  // namespace
}  // namespace smalltalk
