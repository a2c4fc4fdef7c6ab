// Downstream tasks, scored as lm-evaluation-harness 0.4 scores them: an answer is the choice of the
// highest log-likelihood behind its context. Tasks are files of JSON lines; nothing is loaded from
// elsewhere. The mixture answers each item with one expert, which the routers choose.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/lm/model/transformer.hpp"
#include "smalltalk/mixture/run/run.hpp"
#include "smalltalk/mixture/run/units.hpp"

namespace smalltalk {

class ScoringNotes;  // src/mixture/routing/scoring_notes.hpp

struct TaskItem {
  std::string place;    // file:line
  std::string context;  // with the prompt; empty for a pair
  std::vector<std::string> choices;
  int64_t answer = 0;
  std::string phenomenon;  // of a pair, if named
};

struct Task {
  std::string name;
  bool pairs = false;  // of a good and a bad sentence
  std::vector<TaskItem> items;
};

// How a context is asked: "plain" as it is, "question" as "Question: {context}\nAnswer:".
std::vector<std::string> prompt_names();

// One file, either of multiple choice, {"context", "choices", "answer"}, or of pairs of sentences,
// {"good", "bad"} and perhaps "phenomenon". Its name is the file's, or the folder's of a file
// called items. Error: an item that is neither, by file and line.
Task read_task(const std::filesystem::path& file, const std::string& prompt);

// What a model is asked for: the log-likelihood of tokens[given ..] behind tokens[.. given).
struct ChoiceRow {
  std::vector<int64_t> tokens;
  int64_t given = 1;
};
// Of all choices of all items, one after another. Context and " " + choice are encoded together;
// the end token stands for a context that is empty.
std::vector<ChoiceRow> encode_task(const Task& task, const Tokenizer& tokenizer);
// The last of each row's tokens that a model of this context length takes.
std::vector<ChoiceRow> rows_for_model(std::vector<ChoiceRow> rows, int64_t seq_length);
// The first of them, by which a router decides.
std::vector<ChoiceRow> rows_for_router(std::vector<ChoiceRow> rows, int64_t prefix_tokens);

// In nats, one a row. A row's result does not depend on the other rows, to the bit. With notes it
// goes on from them. Throws Stopped if this process is asked to stop; what it has found is noted.
std::vector<double> score_choices(const Transformer& model, const std::vector<ChoiceRow>& rows,
                                  ScoringNotes* notes = nullptr);

// 0 or 1 an item; of equals the first choice counts.
struct ChoiceMetrics {
  std::vector<double> acc;
  std::vector<double> acc_norm;  // log-likelihoods per character; not of pairs
};
ChoiceMetrics grade(const Task& task, const std::vector<double>& log_likelihoods);

struct TaskReport {
  std::string json;   // {"models": {"mixture": results as lm_eval writes them, "dense": ...}}
  std::string table;  // a line a task and metric, a column a model
};

// Models of a run on tasks, as independent cells that any process may compute. A cell's
// log-likelihoods are kept in the run folder under the hashes of weights and items.
class TaskEvaluation {
 public:
  // REQUIRES the units to be trained, without the control, whose shards no router knows. Error:
  // they are no mixture, or two tasks have one name.
  TaskEvaluation(const Run& run, std::vector<TrainUnit> units, std::vector<Task> tasks);
  TaskEvaluation(const TaskEvaluation&) = delete;

  size_t num_cells() const { return cells_.size(); }
  std::string name(size_t cell) const;
  bool complete(size_t cell) const { return !read(cell).empty(); }
  void compute(size_t cell) const;  // throws Stopped; what it has found by then is kept
  // REQUIRES all cells to be complete.
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
  };
  struct Answers {
    std::vector<double> log_likelihoods;
    std::vector<double> shares;  // of the items, that each expert answered
  };

  Asked ask(const Task& task, const Tokenizer& tokenizer, int64_t prefix_tokens) const;
  std::vector<double> read(size_t cell) const;  // empty: not there
  // Of a task under all units, then all routers.
  std::vector<double> scores_of(size_t task, size_t model) const;
  std::vector<size_t> route(size_t task) const;  // the expert of each item
  Answers answers_of(size_t task, const TrainedModel& model) const;

  Experiment experiment_;
  RunLayout layout_;
  std::vector<TrainUnit> units_;
  std::vector<Task> tasks_;
  std::vector<Asked> asked_;
  std::vector<Cell> cells_;  // [tasks, units and routers]
};

}  // namespace smalltalk
