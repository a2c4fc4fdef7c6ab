#include "smalltalk/mixture/run/run_tokens.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <functional>
#include <set>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/order_file.hpp"
#include "smalltalk/data/prepare.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/mixture/run/stages.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

DocumentFields fields_of(const DataConfig& data) {
  return {data.text_key, data.domain_key, data.lines};
}

// Returns whether the text is there, on the first rank.
bool prepare_split(const Run& run, const std::string& split, const std::vector<std::string>& inputs,
                   const HostCollectives& ranks, bool verify = false) {
  PrepareOptions options;
  options.inputs = inputs;
  options.tokenizer = run.layout.tokenizer();
  options.out = run.layout.tokens(split);
  options.fields = fields_of(run.experiment.data);
  if (run.experiment.data.packing == Packing::documents) {
    options.packed_length = run.experiment.data.seq_length;
  }
  options.max_bad_fraction = run.experiment.data.max_bad_fraction;
  options.verify = verify;
  options.ranks = ranks;
  const PrepareReport report = prepare_tokens(options);
  if (report.already_complete) return report.has_text;
  log_info(fmt::format("{}: {} documents, {} tokens, {} tokens/s", split, report.info.num_documents,
                       human_count(static_cast<double>(report.info.num_tokens)),
                       human_count(static_cast<double>(report.info.num_tokens) / report.seconds)));
  return true;
}

// Trains the tokenizer, or copies the one that the experiment names.
void make_tokenizer(const DataConfig& data, const fs::path& path) {
  if (data.tokenizer.empty()) {
    train_tokenizer(data.train, data.vocab_size, data.tokenizer_sample_bytes, path,
                    fields_of(data));
  } else {
    const Tokenizer given(data.tokenizer);  // refuses what is not a tokenizer
    write_text_atomically(path, read_text(data.tokenizer));
  }
}

void require_split(const Run& run, const std::string& split, const std::string& tokenizer) {
  const TokenFile file(run.layout.tokens(split));
  if (file.info().tokenizer_hash != tokenizer) {
    throw Error(
        fmt::format("{} was made with another tokenizer ({}) than {} ({}): delete it and "
                    "run prepare again",
                    file.path().string(), file.info().tokenizer_hash,
                    run.layout.tokenizer().string(), tokenizer));
  }
  const int64_t length = run.experiment.data.seq_length;
  if (split != "train" && file.num_sequences(length) < 1) {
    throw Error(
        fmt::format("{} holds less than one sequence of {} tokens", file.path().string(), length));
  }
}

}  // namespace

void require_text(const Run& run) {
  const DataConfig& data = run.experiment.data;
  const std::array inputs = {&data.train, &data.validation, &data.test};
  std::set<fs::path> trained_on;
  std::vector<std::string> problems;  // all of them at once
  const auto look_at = [&](const std::string& key, const std::function<void()>& look) {
    try {
      look();
    } catch (const Error& error) {
      problems.push_back(fmt::format("data.{}: {}", key, error.what()));
    }
  };
  for (size_t i = 0; i < kSplits.size(); ++i) {
    // What is tokenised does not need its text any more.
    if (fs::exists(run.layout.tokens(kSplits[i]))) continue;
    look_at(kSplits[i], [&] {
      const InputFiles found = expand_inputs(*inputs[i]);
      for (const fs::path& file : found.files) {
        const fs::path real = fs::canonical(file);
        if (i == 0) trained_on.insert(real);
        if (i > 0 && trained_on.contains(real)) {
          log_warning(fmt::format("data.{}: {} is trained on, too", kSplits[i], file.string()));
          break;
        }
      }
      if (found.files.empty()) throw Error("names no text");
      refuse_left_out(found, data.max_bad_fraction);
    });
  }
  if (!data.tokenizer.empty() && !fs::exists(run.layout.tokenizer())) {
    look_at("tokenizer", [&] { const Tokenizer readable(data.tokenizer); });
  }
  if (!problems.empty()) throw Error(fmt::format("{}", fmt::join(problems, "\n  ")));
}

void prepare_tokens_of(const Run& run, const HostCollectives& ranks, bool verify) {
  const DataConfig& data = run.experiment.data;
  const bool complete = tokens_stage(run.layout).complete();
  time_stage(run.layout, "prepare", complete, ranks, [&] {
    if (!complete) run_together(ranks, [&] { require_text(run); });
    const fs::path tokenizer = run.layout.tokenizer();
    const bool missing = first_rank_says(!fs::exists(tokenizer), ranks);
    run_together(ranks, [&] {
      if (!missing || ranks.rank != 0) return;
      make_tokenizer(data, tokenizer);
      stop_if_asked();
    });
    bool has_text = prepare_split(run, "train", data.train, ranks, verify);
    has_text &= prepare_split(run, "validation", data.validation, ranks, verify);
    has_text &= prepare_split(run, "test", data.test, ranks, verify);
    const fs::path& experiment = run.layout.experiment();
    if (ranks.rank != 0 || !has_text || !fs::exists(experiment)) return;
    // Where the text lies now: it is the same.
    const std::string text = to_toml(run.experiment);
    if (read_text(experiment) != text) write_text_atomically(experiment, text);
  });
}

void prepare_text(const Run& run, const std::string& name, const std::vector<std::string>& files,
                  const HostCollectives& ranks) {
  if (!is_plain_name(name) || std::ranges::count(kSplits, name) > 0) {
    throw Error(fmt::format(
        "'{}' is no name for other text: it is of letters, digits, '-', '_' and '.', and none of "
        "train, validation, test",
        printable(name)));
  }
  prepare_split(run, name, files, ranks);
}

void require_split(const Run& run, const std::string& split) {
  require_split(run, split, Tokenizer(run.layout.tokenizer()).hash());
}

std::shared_ptr<const TokenFile> training_tokens(const Run& run) {
  const fs::path tokens = run.layout.tokens("train");
  if (run.experiment.data.order == TextOrder::file) {
    return std::make_shared<const TokenFile>(tokens);
  }
  const fs::path order = run.layout.order();
  if (!fs::exists(order)) {
    throw Error(
        fmt::format("{} is not there, for data.order = similar: run order first", order.string()));
  }
  return std::make_shared<const TokenFile>(tokens, read_order(order));
}

void require_tokens(const Run& run) {
  const Tokenizer tokenizer(run.layout.tokenizer());
  for (const char* split : kSplits) require_split(run, split, tokenizer.hash());
  const Experiment& experiment = run.experiment;
  const TokenFile tokens(run.layout.tokens("train"));
  const int64_t num_sequences = tokens.num_sequences(experiment.data.seq_length);
  if (num_sequences < experiment.mixture.experts) {
    throw Error(
        fmt::format("mixture.experts = {} but {} holds only {} sequences of {} tokens: add "
                    "text, or lower mixture.experts or data.seq_length",
                    experiment.mixture.experts, tokens.path().string(), num_sequences,
                    experiment.data.seq_length));
  }
}

void open_tokens(Run& run) {
  require_tokens(run);
  Experiment& experiment = run.experiment;
  const Tokenizer tokenizer(run.layout.tokenizer());
  run.tokens = training_tokens(run);
  experiment.adopt_tokens(tokenizer.vocab_size(), run.tokens->info().end_token);
  run.provenance = {{"tokens", run.tokens->info().content_hash},
                    {"tokenizer", tokenizer.hash()},
                    {"routing", part_hash(experiment, Part::routing)},
                    {"seed", std::to_string(experiment.seed)}};
  if (run.tokens->is_reordered()) run.provenance["order"] = run.tokens->info().order_hash;
}

}  // namespace smalltalk
