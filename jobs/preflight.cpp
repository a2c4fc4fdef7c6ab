#include "preflight.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <span>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/mixture/run/run_tokens.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

using Files = std::vector<fs::path>;

// At most so many come of a text by a tokenizer of our recipe: a token has at least one byte, and
// what ends a document takes the place of a line end, or of more in JSON. Nothing if that is not
// known before it is unpacked.
std::optional<int64_t> most_tokens(const Files& files) {
  int64_t tokens = 0;
  for (const fs::path& file : files) {
    if (is_compressed(file)) return std::nullopt;
    tokens += static_cast<int64_t>(fs::file_size(file)) + 1;
  }
  return tokens;
}

// How many sequences a split has, can have at most, or may have.
struct SplitSize {
  int64_t sequences = 0;
  enum { counted, at_most, guessed } kind = counted;
};

// `files` are those of a split without tokens; none are given if they tell nothing.
std::optional<SplitSize> size_of(const Run& run, const std::string& split, const Files& files) {
  const int64_t length = run.experiment.data.seq_length;
  const fs::path file = run.layout.tokens(split);
  if (fs::exists(file)) {
    return SplitSize{TokenFile(file).num_sequences(length), SplitSize::counted};
  }
  if (files.empty()) return std::nullopt;
  const auto tokens = most_tokens(files);
  if (tokens) return SplitSize{(*tokens - 1) / length, SplitSize::at_most};
  return SplitSize{unpacked_bytes(files) / length, SplitSize::guessed};
}

void require_size(const Run& run, const std::string& split, const Files& files, int64_t least,
                  const std::string& why) {
  const auto size = size_of(run, split, files);
  if (!size) return;
  const int64_t length = run.experiment.data.seq_length;
  if (size->sequences < least && size->kind != SplitSize::guessed) {
    throw Error(fmt::format(
        "data.{} holds {}{} sequences of data.seq_length = {} tokens, and {}: add text, or lower "
        "one of them",
        split, size->kind == SplitSize::counted ? "" : "at most ", size->sequences, length, why));
  }
  // Text seldom takes more than a token for two of its bytes.
  if (size->kind != SplitSize::counted && size->sequences / 2 < least) {
    log_warning(fmt::format(
        "data.{} holds probably less than {} sequences of data.seq_length = {} tokens, and {}",
        split, least, length, why));
  }
}

void check_tokenizer(const fs::path& file, int64_t vocab_size) {
  int64_t size = 0;
  try {
    size = Tokenizer(file).vocab_size();
  } catch (const Error& error) {
    throw Error(std::string("data.tokenizer: ") + error.what());
  }
  if (vocab_size != DataConfig().vocab_size && vocab_size != size) {
    throw Error(
        fmt::format("data.vocab_size = {}, but data.tokenizer ({}) has {} pieces: leave one of "
                    "the keys out",
                    vocab_size, file.string(), size));
  }
  if (!can_be_exported(file)) {
    log_warning(
        fmt::format("data.tokenizer: {} is of a kind whose ids transformers cannot repeat: all but "
                    "`export` will work",
                    file.string()));
  }
}

}  // namespace

void require_used(const DocumentFields& fields, const Files& files, const std::string& prefix) {
  const auto has = [&](FileKind kind) {
    return std::ranges::any_of(files, [&](const fs::path& file) { return kind_of(file) == kind; });
  };
  const std::string dash = prefix == "--" ? "-" : "_";
  const auto refuse_if = [&](bool idle, const std::string& field, const char* needed) {
    if (idle) throw Error(fmt::format("{}{} is set, but no file {}", prefix, field, needed));
  };
  const DocumentFields defaults;
  const bool no_json = !has(FileKind::json);
  refuse_if(fields.lines && !has(FileKind::plain_text), "lines", "is a .txt");
  refuse_if(no_json && fields.text != defaults.text, "text" + dash + "key", "is JSON");
  // Without JSON there is no domain, which is what an empty key asks for.
  refuse_if(no_json && fields.domain != defaults.domain && !fields.domain.empty(),
            "domain" + dash + "key", "is JSON");
  if (fields.lines) return;
  constexpr size_t kLookedAt = 20;  // of a corpus of many files some tell enough
  for (const fs::path& file : std::span(files).first(std::min(files.size(), kLookedAt))) {
    if (kind_of(file) != FileKind::plain_text || !looks_like_lines(file)) continue;
    log_info(fmt::format("{} is read as one document; if each of its lines is one, set {}lines",
                         file.string(), prefix));
    break;
  }
}

void require_runnable(const Run& run) {
  const DataConfig& data = run.experiment.data;
  std::array<Files, kSplits.size()> files;  // of the splits that have no tokens yet
  if (!tokens_stage(run.layout).complete()) {
    require_text(run);
    const std::array inputs = {&data.train, &data.validation, &data.test};
    Files all;
    for (size_t i = 0; i < kSplits.size(); ++i) {
      if (fs::exists(run.layout.tokens(kSplits[i]))) continue;
      files[i] = expand_inputs(*inputs[i]).files;
      try {
        require_good_documents(files[i], {data.text_key, data.domain_key, data.lines});
      } catch (const Error& error) {
        throw Error(fmt::format("data.{}: {}", kSplits[i], error.what()));
      }
      all.insert(all.end(), files[i].begin(), files[i].end());
    }
    if (!all.empty()) require_used({data.text_key, data.domain_key, data.lines}, all, "data.");
  }
  const fs::path made = run.layout.tokenizer();
  const fs::path tokenizer = fs::exists(made) ? made : fs::path(data.tokenizer);
  if (!data.tokenizer.empty()) {
    check_tokenizer(tokenizer, data.vocab_size);
  } else if (data.vocab_size < kLeastVocabSize) {
    throw Error(fmt::format("data.vocab_size = {}: a tokenizer needs {} ids at least",
                            data.vocab_size, kLeastVocabSize));
  }
  // Others may make more tokens of a text than it has bytes.
  if (!tokenizer.empty() && !can_be_exported(tokenizer)) files.fill(Files());

  const MixtureConfig& mixture = run.experiment.mixture;
  if (run.experiment.has_mixture()) {
    require_size(run, kSplits[0], files[0], mixture.sequences_per_round,
                 fmt::format("mixture.sequences_per_round is {} for mixture.experts = {}",
                             mixture.sequences_per_round, mixture.experts));
  }
  for (const size_t split : {0, 1, 2}) {
    require_size(run, kSplits[split], files[split], 1, "one is needed");
  }
}

void require_batches(const Experiment& experiment, const RankPlan& plan) {
  const TrainConfig& train = experiment.expert_train;
  const int64_t share = train.batch_size / plan.group_size;
  if (train.micro_batch_size > 0 && share % train.micro_batch_size != 0) {
    throw Error(fmt::format(
        "expert.micro_batch_size ({}) must divide a rank's share of the batch, expert.batch_size "
        "({}) / {} ranks of a group = {}: set mixture.group_size, or start another number of ranks",
        train.micro_batch_size, train.batch_size, plan.group_size, share));
  }
}

void require_slices(const Experiment& experiment, const RankPlan& plan) {
  const int64_t width = experiment.expert_model.resolved().intermediate_size;
  if (experiment.lory.tensor_parallel && width % plan.group_size != 0) {
    throw Error(fmt::format(
        "lory.tensor_parallel cuts expert.intermediate_size ({}) into {} slices of one size, one "
        "for each rank of a group: set mixture.group_size, or start another number of ranks",
        width, plan.group_size));
  }
}

}  // namespace smalltalk
