#include "smalltalk/mixture/evaluation/tasks.hpp"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "mixture_fixture.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/lm/model/scoring.hpp"
#include "smalltalk/lm/torch/decoder.hpp"
#include "support/complaint.hpp"
#include "support/write_bytes.hpp"

namespace smalltalk {
namespace {

using testing::HasSubstr;

TaskItem item(const std::string& context, const std::vector<std::string>& choices,
              int64_t answer = 0) {
  TaskItem item;
  item.place = "here:1";
  item.contexts = {context};
  item.choices = choices;
  item.answer = answer;
  return item;
}

Task task_of(const std::vector<TaskItem>& items, TaskKind kind = TaskKind::choices) {
  Task task;
  task.kind = kind;
  task.items = items;
  return task;
}

class Tasks : public MixtureFixture {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& lines) const {
    return write_bytes(folder / name, lines);
  }
  std::string complaint(const std::string& lines) const {
    return complaint_of([&] { read_task(write("bad.jsonl", lines), "plain"); });
  }
  Task read(const std::string& name, const std::string& lines) const {
    return read_task(write(name, lines), "plain");
  }
};

TEST_F(Tasks, AreReadInFourForms) {
  const Task quiz = read_task(
      write("quiz/items.jsonl",
            "{\"id\": 7, \"context\": \"ab\", \"choices\": [\"c\", \"d\"], \"answer\": 1}\n\n"
            "{\"context\": \"\", \"choices\": [\"c\"], \"answer\": 0}\r\n"),
      "question");
  EXPECT_EQ(quiz.name, "quiz");
  EXPECT_EQ(quiz.kind, TaskKind::choices);
  ASSERT_EQ(quiz.items.size(), 2u);
  EXPECT_EQ(quiz.items[0].contexts, std::vector<std::string>{"Question: ab\nAnswer:"});
  EXPECT_EQ(quiz.items[0].choices, (std::vector<std::string>{"c", "d"}));
  EXPECT_EQ(quiz.items[0].answer, 1);
  EXPECT_THAT(quiz.items[1].place, HasSubstr("items.jsonl:3"));

  const Task pairs = read_task(
      write("pairs.jsonl", "{\"good\": \"x\", \"bad\": \"y\", \"phenomenon\": \"p\"}"), "question");
  EXPECT_EQ(pairs.name, "pairs");
  EXPECT_EQ(pairs.kind, TaskKind::pairs);
  EXPECT_EQ(pairs.items[0].contexts, std::vector<std::string>{""});
  EXPECT_EQ(pairs.items[0].choices, (std::vector<std::string>{"x", "y"}));
  EXPECT_EQ(pairs.items[0].phenomenon, "p");

  const Task cups =
      read_task(write("cups.jsonl", R"({"context": ["a", "bc"], "choices": ["d"], "answer": 1})"),
                "question");
  EXPECT_EQ(cups.kind, TaskKind::contexts);
  ASSERT_EQ(cups.items[0].num_requests(), 2u);
  EXPECT_EQ(cups.items[0].context(1), "Question: bc\nAnswer:");
  EXPECT_EQ(cups.items[0].choice(1), "d");
  EXPECT_EQ(cups.items[0].answer, 1);

  const Task words = read("words.jsonl", R"({"context": "a b", "target": "c", "text": "a b c"})");
  EXPECT_EQ(words.kind, TaskKind::target);
  EXPECT_EQ(words.items[0].num_requests(), 1u);
  EXPECT_EQ(words.items[0].contexts, std::vector<std::string>{"a b"});
  EXPECT_EQ(words.items[0].choices, std::vector<std::string>{"c"});

  // Fields that a kind does not have are passed over.
  EXPECT_EQ(
      read("more.jsonl", R"({"context": "a", "choices": ["b"], "answer": 0, "target": 3})").kind,
      TaskKind::choices);
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
      {R"({"context": [], "choices": ["b"], "answer": 0})", "\"context\" is not a list of texts"},
      {R"({"context": ["a", ""], "choices": ["b"], "answer": 0})", "\"context\" is an empty text"},
      {R"({"context": ["a", 1], "choices": ["b"], "answer": 0})", "\"context\" is not a text"},
      {R"({"context": ["a", "b"], "choices": ["c", "d"], "answer": 0})", "must be a single one"},
      {R"({"context": ["a", "b"], "choices": ["c"], "answer": 2})", "not a number from 0 to 1"},
      {R"({"context": ["a", "b"], "target": "c"})", "\"context\" is not a text"},
      {R"({"target": "c"})", "no \"context\""},
      {R"({"context": "a", "target": ""})", "\"target\" is an empty text"},
      {R"({"context": "a", "target": ["b"]})", "\"target\" is not a text"},
      {R"({"context": "a", "target": "b"})", "targets and multiple choice in one file"},
      {R"({"context": ["a", "b"], "choices": ["c"], "answer": 0})",
       "several contexts and multiple choice in one file"},
      {R"({"good": "a", "bad": "b"})", "pairs and multiple choice in one file"}};
  for (const auto& [line, reason] : bad) {
    // Two kinds are seen when the second comes, what else is wrong at once.
    const bool mixed = reason.ends_with("in one file");
    const std::string text = complaint((mixed ? good : "\n") + line + "\n" + good);
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
      task_of({item("ab \n\u3000", {"c"}), item("", {"c"}), item(" \t", {"c"})}), tokenizer);
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
  const ChoiceScores scores = score_choices(model, rows);
  const std::vector<double>& together = scores.log_likelihoods;
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(score_choices(model, {rows[i]}).log_likelihoods[0], together[i]) << i;
    // Without padding and alone.
    const std::span<const int64_t> tokens = rows[i].tokens;
    const auto given = static_cast<size_t>(rows[i].given);
    const double before = given == 1 ? 0 : log_likelihood(model, tokens.first(given));
    EXPECT_NEAR(together[i], log_likelihood(model, tokens) - before, 1e-4) << i;
  }
}

// What a decoder says that was begun with the prompt and is fed the choice.
TEST_F(Tasks, ExpertsAreMergedByWhatIsGiven) {
  ModelConfig config = experiment.expert_model;
  config.merged_experts = 3;
  config.segment_tokens = 4;
  const Transformer model(config, experiment.device, 3);
  std::vector<ChoiceRow> rows;
  for (int64_t size = 40; size >= 3; --size) {
    ChoiceRow row{{}, 1 + size / 3};
    for (int64_t i = 0; i < size; ++i) row.tokens.push_back((size * 31 + i * 17) % kVocabulary);
    rows.push_back(row);
  }
  const ChoiceScores by_prompt = score_choices(model, rows, nullptr, MergeBy::prompt);
  const ChoiceScores by_segments = score_choices(model, rows);
  double largest = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    Decoder decoder(model, 1, 64, MergeBy::prompt);
    const std::span<const int64_t> tokens = rows[i].tokens;
    std::vector<float> logits = decoder.begin(0, tokens.first(static_cast<size_t>(rows[i].given)));
    double sum = 0;
    for (const int64_t token : tokens.subspan(static_cast<size_t>(rows[i].given))) {
      double all = 0;
      for (const float logit : logits) all += std::exp(static_cast<double>(logit));
      sum += logits[static_cast<size_t>(token)] - std::log(all);
      logits = decoder.step({&token, 1});
    }
    EXPECT_NEAR(by_prompt.log_likelihoods[i], sum, 1e-4) << i;
    largest = std::max(largest, std::abs(sum - by_segments.log_likelihoods[i]));
  }
  EXPECT_GT(largest, 1e-2);  // it makes a difference
}

// Tokens that a model would choose, and the same with the last one replaced.
TEST_F(Tasks, ATargetIsGreedyIfEachOfItsTokensIsTheLikeliest) {
  const Transformer model(experiment.expert_model, experiment.device, 3);
  std::vector<int64_t> tokens = {30, 40, 50};
  for (int i = 0; i < 4; ++i) {
    const std::vector<float> logits = model.logits(tokens, 1, std::ssize(tokens));
    const auto last = std::span(logits).last(kVocabulary);
    tokens.push_back(std::ranges::max_element(last) - last.begin());
  }
  std::vector<int64_t> other_end = tokens, other_middle = tokens;
  other_end.back() = (tokens.back() + 1) % kVocabulary;
  other_middle[3] = (tokens[3] + 1) % kVocabulary;
  // The last: nobody asks for the first tokens, of which one is not the likeliest.
  const std::vector<ChoiceRow> rows = {
      {tokens, 3}, {other_end, 3}, {other_middle, 3}, {tokens, 6}, {tokens, 1}};
  EXPECT_EQ(score_choices(model, rows).greedy, (std::vector<uint8_t>{1, 0, 0, 1, 0}));
}

TEST(TaskGrades, TiesGoToTheFirstAndLengthsAreCharacters) {
  const std::vector<TaskItem> items = {item("", {"a", "b"}, 0), item("", {"a", "b"}, 1),
                                       item("", {"aa", "bbbb"}, 1),
                                       item("", {"\u00e9\u00e9", "bbbb"}, 1)};
  const ChoiceScores scores = {{-1, -1, -1, -1, -3, -5, -3, -5}, {}};
  const TaskMetrics metrics = grade(task_of(items), scores);
  EXPECT_EQ(metrics.acc, (std::vector<double>{1, 0, 0, 0}));
  EXPECT_EQ(metrics.acc_norm, (std::vector<double>{1, 0, 1, 1}));
  EXPECT_TRUE(grade(task_of(items, TaskKind::pairs), scores).acc_norm.empty());
}

// -6 / 2 characters against -8 / 4, whatever stands before them.
TEST(TaskGrades, SeveralContextsAreDividedByTheirOwnLengths) {
  std::vector<TaskItem> items = {item("ab", {"x y z"}, 0), item("ab", {"x y z"}, 1)};
  for (TaskItem& one : items) {
    one.contexts.push_back("\u00e9bcd");
    one.examples = "an example\n\n";
  }
  const TaskMetrics metrics = grade(task_of(items, TaskKind::contexts), {{-6, -8, -6, -8}, {}});
  EXPECT_EQ(metrics.acc, (std::vector<double>{1, 0}));
  EXPECT_EQ(metrics.acc_norm, (std::vector<double>{0, 1}));
}

TEST(TaskGrades, ATargetIsRightIfItIsGreedy) {
  const std::vector<TaskItem> items(3, item("a", {"b"}));
  const TaskMetrics metrics = grade(task_of(items, TaskKind::target), {{-1, -2, -9}, {0, 1, 0}});
  EXPECT_EQ(metrics.acc, (std::vector<double>{0, 1, 0}));
  EXPECT_TRUE(metrics.acc_norm.empty());
  EXPECT_EQ(metrics.log_likelihoods, (std::vector<double>{-1, -2, -9}));
}

// Two items: resamples have the mean -1, -2, -3 in one, two and one of four cases.
TEST(TaskPerplexity, IsOfTheMeanAndItsErrorOfTheResamples) {
  const TargetPerplexity perplexity = perplexity_of(std::vector<double>{-1, -3});
  EXPECT_DOUBLE_EQ(perplexity.value, std::exp(2));
  const double e1 = std::exp(1), e2 = std::exp(2), e3 = std::exp(3);
  const double center = (e1 + 2 * e2 + e3) / 4;
  const double variance = (e1 * e1 + 2 * e2 * e2 + e3 * e3) / 4 - center * center;
  EXPECT_NEAR(*perplexity.error, std::sqrt(variance), 0.01 * std::sqrt(variance));
  EXPECT_FALSE(perplexity_of(std::vector<double>{-1}).error);
}

// random.Random(1234) draws 3 of 4 as 3 0 2, 0 2 3, 0 3 1, 1 0 2.
TEST_F(Tasks, ExamplesAreDrawnAsByPythonAndNeverTheItemItself) {
  std::string lines;
  for (const char* name : {"a", "b", "c", "d"}) {
    lines += fmt::format(R"({{"context": "{0}?", "choices": ["no", "{0}"], "answer": 1}})", name);
    lines += "\n";
  }
  Task task = read("own.jsonl", lines);
  add_examples(task, Task(task), {.examples = 2, .seed = 1234});
  EXPECT_EQ(task.num_fewshot, 2);
  EXPECT_EQ(task.items[0].examples, "d? d\n\nc? c\n\n");  // 3 2, without 0
  EXPECT_EQ(task.items[1].examples, "a? a\n\nc? c\n\n");
  EXPECT_EQ(task.items[2].examples, "a? a\n\nd? d\n\n");
  EXPECT_EQ(task.items[3].examples, "b? b\n\na? a\n\n");
  // So it is if the task is a copy of the file, or the beginning of it.
  for (const size_t size : {lines.size(), lines.size() / 2}) {
    Task part = read("part.jsonl", lines.substr(0, size));
    add_examples(part, read("own.jsonl", lines), {.examples = 2, .seed = 1234});
    for (size_t i = 0; i < part.items.size(); ++i) {
      EXPECT_EQ(part.items[i].examples, task.items[i].examples);
    }
  }
  // Others may all be drawn.
  Task other = read("other.jsonl", R"({"context": "e?", "choices": ["no", "e"], "answer": 1})");
  add_examples(other, task, {.examples = 3, .seed = 1234});
  EXPECT_EQ(other.items[0].examples, "d? d\n\na? a\n\nc? c\n\n");

  // Models and routers read them before the context.
  const Tokenizer tokenizer(folder / "tokenizer.model");
  const auto encoded = tokenizer.encode("d? d\n\na? a\n\nc? c\n\ne? no");
  EXPECT_EQ(encode_task(other, tokenizer)[0].tokens,
            std::vector<int64_t>(encoded.begin(), encoded.end()));
}

// Three times the same line: one draw in four is of those, and is made anew of the others.
TEST_F(Tasks, LinesLikeTheItemsAreNotItsExamples) {
  const std::string same = "{\"context\": \"s\", \"target\": \"x\"}\n",
                    swapped = "{\"target\": \"x\", \"context\": \"s\"}\n",
                    other = "{\"context\": \"o\", \"target\": \"y\"}\n";
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Task task = read("t.jsonl", same + swapped + same + other);
    add_examples(task, Task(task), {.examples = 1, .seed = seed});
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(task.items[i].examples, "o  y\n\n");
    EXPECT_EQ(task.items[3].examples, "s  x\n\n");
    EXPECT_THAT(
        complaint_of([&] { add_examples(task, Task(task), {.examples = 2, .seed = seed}); }),
        HasSubstr("t.jsonl:1: 1 other items are too few for 2 examples"));
  }
}

TEST_F(Tasks, ExamplesHaveTheFormOfTheirKindAndPrompt) {
  const std::string cups = R"({"context": ["a", "b"], "choices": ["c"], "answer": 1})";
  Task task = read_task(write("cups.jsonl", cups), "question");
  const std::string more = R"({"context": ["d", "e"], "choices": ["f"], "answer": 0})";
  add_examples(task, read_task(write("more.jsonl", more), "question"), {.examples = 1});
  EXPECT_EQ(task.items[0].examples, "Question: d\nAnswer: f\n\n");

  const auto complaint_about = [&](const Task& pool, int64_t count) {
    return complaint_of([&] { add_examples(task, pool, {.examples = count}); });
  };
  EXPECT_THAT(complaint_about(read("more.jsonl", more), 2),
              HasSubstr("more.jsonl: 1 items are too few for 2 examples"));
  EXPECT_THAT(complaint_about(task, 1),
              HasSubstr("cups.jsonl: 1 items are too few for 1 examples besides the item itself"));
  EXPECT_THAT(complaint_about(read("t.jsonl", R"({"context": "a", "target": "b"})"), 1),
              HasSubstr("t.jsonl: targets cannot be examples for"));
  Task pairs = read("pairs.jsonl", R"({"good": "x", "bad": "y"})");
  EXPECT_THAT(complaint_of([&] { add_examples(pairs, task, {.examples = 1}); }),
              HasSubstr("pairs.jsonl: pairs of sentences take no examples"));
}

}  // namespace
}  // namespace smalltalk
