// Downstream tasks, scored as lm-evaluation-harness 0.4 scores them: an answer is the choice of the
// highest log-likelihood behind its context, or the context behind which one choice has the
// highest, or one target is scored. Tasks are files of JSON lines; nothing is loaded from
// elsewhere. The mixture answers each item with one expert, which the routers choose.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/lm/torch/decoder.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

class ScoringNotes;  // src/mixture/routing/scoring_notes.hpp

enum class TaskKind {
  choices,   // of several continuations of one context
  contexts,  // of several contexts of one continuation (lm_eval's multiple inputs)
  pairs,     // of a good and a bad sentence
  target     // one continuation of one context
};
std::string_view kind_name(TaskKind kind);  // as errors call it

// What a model is asked about an item is the log-likelihood of choice(i) behind examples and
// context(i), for each i below num_requests().
struct TaskItem {
  std::string place;  // file:line
  // With the prompt. Several contexts and one choice, or the other way round, or one of both; the
  // context of a pair is empty.
  std::vector<std::string> contexts;
  std::vector<std::string> choices;
  int64_t answer = 0;      // one of the requests
  std::string phenomenon;  // of a pair, if named
  std::string line;        // its JSON, equal for equal items
  std::string examples;    // few-shot, before every context

  size_t num_requests() const { return std::max(contexts.size(), choices.size()); }
  const std::string& context(size_t request) const { return one_of(contexts, request); }
  const std::string& choice(size_t request) const { return one_of(choices, request); }

 private:
  static const std::string& one_of(const std::vector<std::string>& texts, size_t request) {
    return texts[texts.size() == 1 ? 0 : request];
  }
};

struct Task {
  std::string name;
  std::string file;
  TaskKind kind = TaskKind::choices;
  std::string prompt;  // its name
  std::vector<TaskItem> items;
  int64_t num_fewshot = 0;  // examples before each context
  uint64_t fewshot_seed = 0;
};

// How a context is asked: "plain" as it is, "question" as "Question: {context}\nAnswer:".
std::vector<std::string> prompt_names();

// One file of items of one kind: multiple choice, {"context", "choices", "answer"}; several
// contexts, the same with a list as "context" and a single choice; a target, {"context", "target"};
// or pairs of sentences, {"good", "bad"} and perhaps "phenomenon". Other fields are passed over.
// The task's name is the file's, or the folder's of a file called items. Error: an item that is
// none of them, or of another kind than the first, by file and line.
Task read_task(const std::filesystem::path& file, const std::string& prompt);

struct FewShot {
  int64_t examples = 0;  // before each item
  uint64_t seed = 1234;  // as lm_eval's fewshot_random_seed
};
// Puts examples before the contexts of all items, each with its answer and an empty line behind it,
// as lm_eval does. They are drawn of the pool's items, for one item after another, with the random
// numbers of Python's random.Random(seed): what lm_eval draws of the same lines in the same order.
// If the pool holds all of the task's items, it is taken for the split that they are of: an item is
// then never among its own examples. Error, by file: a pool that is too small or of another kind;
// pairs, which have no context.
void add_examples(Task& task, const Task& pool, const FewShot& few_shot);

// What a model is asked for: the log-likelihood of tokens[given ..] behind tokens[.. given).
struct ChoiceRow {
  std::vector<int64_t> tokens;
  int64_t given = 1;
};
// Of all requests of all items, one after another. Context and " " + choice are encoded together;
// the end token stands for a context that is empty.
std::vector<ChoiceRow> encode_task(const Task& task, const Tokenizer& tokenizer);
// The last of each row's tokens that a model of this context length takes.
std::vector<ChoiceRow> rows_for_model(std::vector<ChoiceRow> rows, int64_t seq_length);
// The first of them, by which a router decides.
std::vector<ChoiceRow> rows_for_router(std::vector<ChoiceRow> rows, int64_t prefix_tokens);

// One a row.
struct ChoiceScores {
  std::vector<double> log_likelihoods;  // nats
  std::vector<uint8_t> greedy;          // 1 if each token is the likeliest behind those before it
};
// A row's result does not depend on the other rows, to the bit. With notes it goes on from them.
// Throws Stopped if this process is asked to stop; what it has found is noted. Where experts are
// merged: for each segment, or once for each row by what is given.
ChoiceScores score_choices(const Transformer& model, const std::vector<ChoiceRow>& rows,
                           ScoringNotes* notes = nullptr, MergeBy merging = MergeBy::segments);

// One number an item; what a kind of task does not have is empty.
struct TaskMetrics {
  // 0 or 1. The likeliest request is the answer, of equals the first; a target is greedy.
  std::vector<double> acc;
  // 0 or 1. By log-likelihoods per character: of the choice, or of the context that differs, with
  // its prompt and without examples.
  std::vector<double> acc_norm;
  std::vector<double> log_likelihoods;  // of targets
};
TaskMetrics grade(const Task& task, const ChoiceScores& scores);

// exp of the negative mean log-likelihood of an item, and its standard error as lm_eval estimates
// it, to the same random numbers: the deviation over 100,000 resamples of the items.
struct TargetPerplexity {
  double value = 0;
  std::optional<double> error;  // none of one item
};
TargetPerplexity perplexity_of(std::span<const double> log_likelihoods);  // REQUIRES one at least

struct TaskReport {
  std::string json;   // {"models": {"mixture": results as lm_eval writes them, "dense": ...}}
  std::string table;  // of these tasks, a line a task and metric, a column a model
};

// Models of a run on tasks, as independent cells that any process may compute. A cell's
// scores are kept in the run folder under the hashes of weights and items.
class TaskEvaluation {
 public:
  // REQUIRES the units to be trained, without the control, whose shards no router knows. Error:
  // they are no mixture, or two tasks have one name.
  TaskEvaluation(const Run& run, std::vector<TrainUnit> units, std::vector<Task> tasks);
  TaskEvaluation(const TaskEvaluation&) = delete;

  size_t num_cells() const { return cells_.size(); }
  std::string name(size_t cell) const;
  bool complete(size_t cell) const { return !read(cell).log_likelihoods.empty(); }
  void compute(size_t cell) const;  // throws Stopped; what it has found by then is kept
  // With what tasks.json says of other tasks under the same weights. REQUIRES all cells to be
  // complete.
  TaskReport report() const;

 private:
  struct Asked {
    struct Rows {
      std::vector<ChoiceRow> rows;
      std::string hash;
    };
    Rows of_models, of_routers;
    // Longer than a model's sequences; those of which even the choice is (lm_eval refuses them).
    int64_t requests_cut = 0, choices_cut = 0;
  };
  struct Cell {
    size_t task;
    std::string model;  // folder below the run
    std::string weights;
    const Asked::Rows* rows;  // in asked_
    std::filesystem::path file;
    MergeBy merging;
  };
  struct Answers {
    ChoiceScores scores;
    std::vector<double> shares;  // of the items, that each expert answered
  };

  Asked ask(const Task& task, const Tokenizer& tokenizer, int64_t prefix_tokens) const;
  ChoiceScores read(size_t cell) const;  // empty: not there
  // Of a task under all units, then all routers, then units again that merge, by what is given.
  ChoiceScores scores_of(size_t task, size_t model) const;
  std::string weights_of(const TrainedModel& model) const;  // of the weights that answer for it
  std::vector<size_t> route(size_t task) const;             // the expert of each item
  Answers answers_of(size_t task, const TrainedModel& model, MergeBy merging) const;

  Experiment experiment_;
  RunLayout layout_;
  std::vector<TrainUnit> units_;
  std::vector<Task> tasks_;
  std::vector<Asked> asked_;
  std::vector<Cell> cells_;  // [tasks, units, routers, units that merge]
};

}  // namespace smalltalk
