#include "smalltalk/mixture/evaluation/tasks.hpp"

#include <gmock/gmock.h>

#include "mixture_fixture.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "support/complaint.hpp"
#include "support/write_bytes.hpp"

namespace smalltalk {
namespace {

using testing::HasSubstr;

TaskItem item(const std::string& context, const std::vector<std::string>& choices,
              int64_t answer = 0) {
  return {"here:1", context, choices, answer, ""};
}

class Tasks : public MixtureFixture {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& lines) const {
    return write_bytes(folder / name, lines);
  }
  std::string complaint(const std::string& lines) const {
    return complaint_of([&] { read_task(write("bad.jsonl", lines), "plain"); });
  }
};

TEST_F(Tasks, AreReadInTwoForms) {
  const Task quiz = read_task(
      write("quiz/items.jsonl",
            "{\"id\": 7, \"context\": \"ab\", \"choices\": [\"c\", \"d\"], \"answer\": 1}\n\n"
            "{\"context\": \"\", \"choices\": [\"c\"], \"answer\": 0}\r\n"),
      "question");
  EXPECT_EQ(quiz.name, "quiz");
  EXPECT_FALSE(quiz.pairs);
  ASSERT_EQ(quiz.items.size(), 2u);
  EXPECT_EQ(quiz.items[0].context, "Question: ab\nAnswer:");
  EXPECT_EQ(quiz.items[0].choices, (std::vector<std::string>{"c", "d"}));
  EXPECT_EQ(quiz.items[0].answer, 1);
  EXPECT_THAT(quiz.items[1].place, HasSubstr("items.jsonl:3"));

  const Task pairs = read_task(
      write("pairs.jsonl", "{\"good\": \"x\", \"bad\": \"y\", \"phenomenon\": \"p\"}"), "question");
  EXPECT_EQ(pairs.name, "pairs");
  EXPECT_TRUE(pairs.pairs);
  EXPECT_EQ(pairs.items[0].context, "");
  EXPECT_EQ(pairs.items[0].choices, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(pairs.items[0].phenomenon, "p");
}

TEST_F(Tasks, BadItemsAreNamedByFileAndLine) {
  const std::string good = "{\"context\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 1}\n";
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"{\"context\": \"a\"", "not whole JSON"},
      {"[1]", "not a JSON object"},
      {R"({"choices": ["b"], "answer": 0})", "no \"context\""},
      {R"({"context": 3, "choices": ["b"], "answer": 0})", "\"context\" is not a text"},
      {R"({"context": "a", "answer": 0})", "no \"choices\""},
      {R"({"context": "a", "choices": [], "answer": 0})", "not a list of texts"},
      {R"({"context": "a", "choices": "b", "answer": 0})", "not a list of texts"},
      {R"({"context": "a", "choices": ["b", 1], "answer": 0})", "\"choices\" is not a text"},
      {R"({"context": "a", "choices": ["b", ""], "answer": 0})", "\"choices\" is an empty text"},
      {R"({"context": "a", "choices": ["b"]})", "no \"answer\""},
      {R"({"context": "a", "choices": ["b", "c"], "answer": 2})", "not a number from 0 to 1"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": -1})", "not a number from 0 to 1"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": 0.5})", "not a number from 0 to 1"},
      {R"({"context": "a", "choices": ["b", "c"], "answer": "c"})", "not a number from 0 to 1"},
      {R"({"good": "a", "bad": "b"})", "pairs and multiple choice in one file"}};
  for (const auto& [line, reason] : bad) {
    const std::string text = complaint(good + line + "\n" + good);
    EXPECT_THAT(text, HasSubstr("bad.jsonl:2: ")) << line;
    EXPECT_THAT(text, HasSubstr(reason)) << line;
  }
  EXPECT_THAT(complaint("{\"good\": \"a\"}"), HasSubstr("no \"bad\""));
  EXPECT_THAT(complaint("{\"good\": \"a\", \"bad\": \"b\", \"phenomenon\": \"p\"}\n"
                        "{\"good\": \"a\", \"bad\": \"b\"}"),
              HasSubstr("bad.jsonl:2: some items have a \"phenomenon\""));
  EXPECT_THAT(complaint("\n"), HasSubstr("holds no items"));
  EXPECT_EQ(complaint(good), "");
}

TEST_F(Tasks, WhiteSpaceBehindTheContextBelongsToTheChoice) {
  const Tokenizer tokenizer(folder / "tokenizer.model");
  const auto ids = [&](const std::string& text) {
    const auto encoded = tokenizer.encode(text);
    return std::vector<int64_t>(encoded.begin(), encoded.end());
  };
  const auto rows = encode_task(
      {"t", false, {item("ab \n\u3000", {"c"}), item("", {"c"}), item(" \t", {"c"})}}, tokenizer);
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].given, 2);
  EXPECT_EQ(rows[0].tokens, ids("ab \n\u3000 c"));
  // A document begins behind the end of another.
  EXPECT_EQ(rows[1].given, 1);
  EXPECT_EQ(rows[1].tokens[0], kEndToken);
  EXPECT_EQ(std::vector(rows[1].tokens.begin() + 1, rows[1].tokens.end()), ids(" c"));
  EXPECT_EQ(rows[2].given, 1);
  EXPECT_EQ(std::vector(rows[2].tokens.begin() + 1, rows[2].tokens.end()), ids(" \t c"));
}

TEST(TaskRows, ModelsTakeTheLastTokensAndRoutersTheFirst) {
  const std::vector<ChoiceRow> rows = {
      {{1, 2, 3, 4, 5, 6}, 4}, {{1, 2, 3, 4, 5, 6}, 1}, {{1, 2}, 1}};
  const auto of_model = rows_for_model(rows, 3);
  EXPECT_EQ(of_model[0].tokens, (std::vector<int64_t>{3, 4, 5, 6}));
  EXPECT_EQ(of_model[0].given, 2);
  EXPECT_EQ(of_model[1].tokens, (std::vector<int64_t>{3, 4, 5, 6}));  // only so much of the choice
  EXPECT_EQ(of_model[1].given, 1);
  EXPECT_EQ(of_model[2].tokens, (std::vector<int64_t>{1, 2}));
  const auto of_router = rows_for_router(rows, 3);
  EXPECT_EQ(of_router[0].tokens, (std::vector<int64_t>{1, 2, 3}));
  EXPECT_EQ(of_router[0].given, 1);
  EXPECT_EQ(of_router[2].tokens, (std::vector<int64_t>{1, 2}));
}

TEST_F(Tasks, ScoresDoNotDependOnTheOtherRows) {
  const Transformer model(experiment.expert_model, experiment.device, 3);
  std::vector<ChoiceRow> rows;
  for (int64_t size = 79; size >= 2; --size) {
    ChoiceRow row{{}, 1 + size / 3};
    for (int64_t i = 0; i < size; ++i) row.tokens.push_back((size * 31 + i * 17) % kVocabulary);
    rows.push_back(row);
  }
  const std::vector<double> together = score_choices(model, rows);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(score_choices(model, {rows[i]})[0], together[i]) << i;
    // Without padding and alone.
    const std::span<const int64_t> tokens = rows[i].tokens;
    const auto given = static_cast<size_t>(rows[i].given);
    const double before = given == 1 ? 0 : log_likelihood(model, tokens.first(given));
    EXPECT_NEAR(together[i], log_likelihood(model, tokens) - before, 1e-4) << i;
  }
}

TEST(TaskGrades, TiesGoToTheFirstAndLengthsAreCharacters) {
  const Task task = {"t",
                     false,
                     {item("", {"a", "b"}, 0), item("", {"a", "b"}, 1), item("", {"aa", "bbbb"}, 1),
                      item("", {"\u00e9\u00e9", "bbbb"}, 1)}};
  const std::vector<double> log_likelihoods = {-1, -1, -1, -1, -3, -5, -3, -5};
  const ChoiceMetrics metrics = grade(task, log_likelihoods);
  EXPECT_EQ(metrics.acc, (std::vector<double>{1, 0, 0, 0}));
  EXPECT_EQ(metrics.acc_norm, (std::vector<double>{1, 0, 1, 1}));
  EXPECT_TRUE(grade({"t", true, task.items}, log_likelihoods).acc_norm.empty());
}

}  // namespace
}  // namespace smalltalk
