// The experiment: everything that decides what a run computes, read from one TOML file. Each field
// is listed once, in visit_fields(); parsing, `--set section.key=value`, the resolved file that is
// written into the run folder, and the list of keys in the help all come from that list. An unknown
// key (with the nearest known one named), a wrong type and an impossible combination are refused
// before anything is computed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "smalltalk/core/assignment/balanced_assignment.hpp"
#include "smalltalk/core/experiment/learning_rate.hpp"

namespace smalltalk {

enum class FeedForward {
  swiglu,  // down(silu(gate(x)) * up(x)), as in Llama
  relu2,   // the paper's plain two matrices: down(relu(up(x))^2), as in Arcee
};

// What the backward pass computes again rather than keep from the forward pass. The results are the
// same bits.
enum class Recompute {
  automatic,  // "auto": on GPUs the least with which the model fits, else none
  none,
  selective,  // norms and activations, which cost little; on GPUs attention, too
  full,       // all of a layer, from its input
};

// By what a segment's experts are merged (Lory).
enum class SegmentRouting {
  previous,  // the segment before
  prefix,    // the first segment of the sequence, for all that follow: one decision
};

// By what a first segment's experts are merged when a Lory model is trained.
enum class FirstSegment {
  own,  // its own mean, as in the paper: its tokens know of later ones, which they cannot in use
  uniform,  // all weigh alike, as in use
};

// How documents become sequences of S tokens.
enum class Packing {
  concat,     // end to end, cut wherever a sequence is full
  documents,  // each begins a sequence, or follows in one that it fits into; the rest is padding
};

// Who tells which expert a sequence of the training text is for, once the routers are trained.
enum class Sharding {
  routers,  // they read every prefix, as in the paper
  ngrams,   // n-grams, learned from the parts of the EM's last rounds
};

// In which order the documents of the training text become sequences.
enum class TextOrder {
  file,     // as they lie in the files
  similar,  // those that are alike one behind the other, by order.h5 of the run
};

// Beyond any model that there is, and small enough that no count of parameters overflows.
struct ModelLimits {
  static constexpr int64_t hidden_size = int64_t{1} << 20;
  static constexpr int64_t intermediate_size = int64_t{1} << 24;
  static constexpr int64_t merged_experts = 4096;
  static constexpr int64_t num_layers = 4096;
  static constexpr int64_t vocab_size = (int64_t{1} << 31) - 1;  // of SentencePiece
};

struct ModelConfig {
  int64_t vocab_size = 0;  // taken from the tokenizer, not from the experiment file
  // These two from the tokens: the token that ends a document, which repeated is padding and no
  // target (-1: there is no such token), and whether attention stays within a document.
  int64_t document_end = -1;
  bool document_mask = false;
  int64_t hidden_size = 64;
  int64_t num_layers = 2;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 0;  // 0: as num_heads
  int64_t intermediate_size =
      0;  // 0: 4 H for relu2, 8/3 H rounded up to a multiple of 8 for swiglu
  FeedForward feed_forward = FeedForward::swiglu;
  bool tie_embeddings = true;
  double rope_theta = 10000;
  double rms_norm_eps = 1e-5;
  double init_std = 0;       // 0: 0.5 / sqrt(H); residual output projections: / sqrt(2 L) more
  double embedding_std = 0;  // 0: 1 / sqrt(H), so that tied logits start with deviation 1
  // Lory: feed-forward layers hold so many experts, merged anew for each segment of so many tokens
  // with weights that a router derives from another segment. 0: plain feed-forwards.
  int64_t merged_experts = 0;
  int64_t segment_tokens = 0;
  std::string merged_layers;  // which do, from 0: "2-5,7"; empty: all
  SegmentRouting routing = SegmentRouting::previous;
  FirstSegment first_segment = FirstSegment::own;

  // The zeros above replaced by what they stand for.
  ModelConfig resolved() const;
  int64_t head_dim() const { return hidden_size / num_heads; }
  bool merges_experts() const { return merged_experts > 0; }
  // By layer, [L]. Error: merged_layers is no list of layers of the model.
  std::vector<bool> merging_layers() const;
  int64_t num_merging_layers() const;
  // Whether models of both compute the same with the same weights. Both must be resolved.
  bool computes_like(const ModelConfig& other) const;
  // The plain model whose feed-forwards have the shape of one expert.
  ModelConfig dense() const;
};

// How one model is trained. The same struct for router, expert and dense baseline.
struct TrainConfig {
  int64_t steps = 100;
  int64_t batch_size = 32;       // sequences per optimiser step, over the whole group
  int64_t micro_batch_size = 0;  // sequences per rank per forward pass; 0: all of the rank's share
  double lr = 3e-3;
  double min_lr = 0;
  int64_t warmup_steps = 0;
  Decay lr_decay = Decay::cosine;
  int64_t decay_steps = 0;    // the last ones, of wsd and wsd_sqrt
  double weight_decay = 0.1;  // matrices only, not norms
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.99;
  double adam_eps = 1e-8;
  double grad_clip = 1.0;  // by global norm; 0: off
  Recompute recompute = Recompute::automatic;
  bool tensor_parallel = false;  // the ranks of a group cut merged experts (lm's ExpertSlice)
  int64_t log_interval = 50;
  int64_t save_interval = 500;  // steps between checkpoints
  int64_t keep_last = 2;        // checkpoints, the newest
  int64_t keep_every = 0;       // such steps have one that is kept for ever; 0: none
  bool tensorboard = false;     // metrics also as an event file
  double outlier_zscore = 6;    // a step this far above the last ones is reported; 0: none is
  bool outlier_skip = false;    // and its update is left out
  bool skip_nonfinite = false;  // leave out a step whose loss or gradient is not finite

  Schedule schedule() const { return {lr, min_lr, warmup_steps, steps, lr_decay, decay_steps}; }
};

struct DataConfig {
  std::vector<std::string> train;  // files, folders, globs, "@LIST" (data/documents.hpp)
  std::vector<std::string> validation;
  std::vector<std::string> test;
  std::string text_key = "text";      // of a JSON object; "a.b" is b in a
  std::string domain_key = "domain";  // the same, a label for reports; empty: there is none
  bool lines = false;                 // of .txt, each line is a document
  std::string tokenizer;              // a SentencePiece model; empty: train one
  int64_t vocab_size = 1024;          // of the tokenizer to train
  int64_t tokenizer_sample_bytes = 10'000'000;  // text that the tokenizer is trained on
  double max_bad_fraction = 0;                  // refused beyond this share of bad documents
  int64_t seq_length = 128;                     // S
  Packing packing = Packing::concat;
  TextOrder order = TextOrder::file;
  bool document_mask = false;
};

struct MixtureConfig {
  int64_t experts = 4;                                     // E; 0: no mixture is trained
  int64_t prefix_tokens = 32;                              // M
  int64_t rounds = 8;                                      // T
  int64_t sequences_per_round = 4096;                      // N, over all routers
  AssignmentMethod assignment = AssignmentMethod::greedy;  // or margin, optimal, argmax
  Sharding sharding = Sharding::routers;
  int64_t group_size = 0;  // ranks per expert; 0: as many as the world gives

  // The last ones of the EM, a third of them, whose parts n-grams learn from.
  int64_t rounds_that_teach() const { return rounds < 6 ? 1 : rounds / 3; }
};

struct BaselineConfig {
  bool dense = true;                // batch as one expert, steps x E
  bool dense_large_batch = false;   // batch x E, steps as one expert (the paper's first rows)
  bool random_shards = true;        // the same experts on random shards
  bool tfidf_shards = false;        // the same experts on shards by the words of the text
  double dense_lr = 0;              // 0: the expert's
  double dense_large_batch_lr = 0;  // 0: the expert's
  int64_t dense_warmup_steps = 0;   // 0: the share of the steps that it is of an expert's
  int64_t dense_large_batch_warmup_steps = 0;  // the same
};

// The second system, Lory (Zhong et al. 2024): one model whose feed-forwards are merged from
// experts. All of it is the expert's but for what stands here.
struct LoryConfig {
  int64_t experts = 0;          // in each feed-forward; 0: no such model is trained
  int64_t segment_tokens = 32;  // T
  std::string layers;           // ModelConfig::merged_layers
  SegmentRouting routing = SegmentRouting::previous;
  FirstSegment first_segment = FirstSegment::own;
  double dense_warmup = 0.05;    // this share of the steps trains what all experts begin as
  bool tensor_parallel = false;  // TrainConfig::tensor_parallel
  int64_t train_steps = 0;       // 0: until its training FLOPs are those of the mixture
  double lr = 0;                 // 0: the expert's
};

struct DeviceConfig {
  std::string device = "cpu";         // cpu or cuda
  std::string precision = "float32";  // float32 or bf16-mixed (cuda)
  int64_t threads = 1;                // compute threads per rank on the CPU
  double flops_per_second = 0;        // per device, for MFU and estimates; 0: measured
  std::string trace_steps;            // "10:20": trace.json of steps 10 to 19; empty: none

  struct Steps {
    int64_t first = 0, last = 0;  // without `last`
  };
  Steps traced_steps() const;  // Error naming the key
};

struct Experiment {
  std::string name = "experiment";
  uint64_t seed = 1;
  DataConfig data;
  MixtureConfig mixture;
  ModelConfig router_model;
  TrainConfig router_train;  // steps: derived, one pass over what it is assigned in each round
  ModelConfig expert_model;
  TrainConfig expert_train;  // steps: of one expert
  BaselineConfig baselines;
  LoryConfig lory;
  DeviceConfig device;

  bool has_mixture() const { return mixture.experts > 0; }
  ModelConfig lory_model() const;
  // What all models take from the tokens.
  void adopt_tokens(int64_t vocab_size, int64_t end_token);

  // Refuses impossible combinations (M > S, heads that do not divide H, batch larger than a
  // round's share, ...) with an Error that names the keys. Called by load_experiment().
  void validate() const;
};

// Calls f(key, field, help) for every field, key being "section.key" (or "name" at the top level):
// [data], [mixture], [router], [expert], [baselines], [lory], [device]. A model's and its
// training's keys share a section: router.hidden_size, router.lr. router.steps does not exist.
template <typename F>
void visit_fields(Experiment& experiment, F&& f);

// Reads a TOML file, then applies overrides "section.key=value" (value in TOML; a bare word counts
// as a string). Relative data paths are relative to the working directory.
// Errors: file not readable, TOML syntax (line named), unknown key, wrong type, impossible values,
// a value other than the default that has no effect beside the others.
Experiment load_experiment(const std::filesystem::path& file,
                           const std::vector<std::string>& overrides);

// The resolved experiment as TOML text; load_experiment() of it gives the same experiment.
std::string to_toml(const Experiment& experiment);

// Keys that leave what is computed as it is, or as good as it is: names, intervals of logging and
// saving, threads, how a batch is cut and spread over ranks, what is tolerated from now on, and
// which baselines there are. They may change at any time.
bool decides_nothing(std::string_view key);

// What a run is made of by keys. Each part is made from the content of those before it, too: tokens
// from text, which no key tells, routers from tokens, experts from shards, made by routers; a Lory
// model has keys beside an expert's. How long models train and at which rates is a part of its own:
// they may be trained on.
enum class Part { tokens, routing, expert, lory, schedule };
// (With data.packing = "documents", data.seq_length decides the tokens, too.)
bool decides(std::string_view key, Part part);

// Hashes (XXH3, 16 hex digits) over all keys that decide something, and over those that decide a
// part.
std::string experiment_hash(const Experiment& experiment);
std::string part_hash(const Experiment& experiment, Part part);

struct KeyDifference {
  std::string key;
  std::string there, here;  // values, in TOML
};
// In the order of the keys.
std::vector<KeyDifference> differences(const Experiment& there, const Experiment& here);

// One line per key with its default and meaning, for --help-experiment.
std::string experiment_help();

std::string to_string(FeedForward value);
std::string to_string(Packing value);
std::string to_string(TextOrder value);
std::string to_string(Recompute value);
std::string to_string(SegmentRouting value);
std::string to_string(FirstSegment value);
std::string to_string(Sharding value);

}  // namespace smalltalk

#include "smalltalk/core/experiment/experiment_fields.hpp"
