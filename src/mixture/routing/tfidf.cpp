#include "smalltalk/mixture/routing/tfidf.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/mixture/routing/shard_assignment.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kRatedRows = 4096;  // at a time

void save_clusters(const fs::path& path, const TextClusters& clusters,
                   const Provenance& made_from) {
  const int64_t vocab_size = clusters.vocab_size();
  const int64_t dimensions = clusters.dimensions();
  write_safetensors(path,
                    {{"idf", {{vocab_size}, clusters.idf}},
                     {"projection", {{vocab_size, dimensions}, clusters.projection}},
                     {"centres", {{clusters.num_clusters(), dimensions}, clusters.centres}}},
                    made_from);
}

TextClusters load_clusters(const fs::path& path) {
  SafetensorsFile file = read_safetensors(path);
  TextClusters clusters{{file.tensors["idf"].values, file.tensors["projection"].values},
                        file.tensors["centres"].values};
  const int64_t vocab_size = clusters.vocab_size();
  const bool whole =
      vocab_size > 0 && std::ssize(clusters.projection) >= vocab_size &&
      file.tensors["projection"].shape == std::vector{vocab_size, clusters.dimensions()} &&
      file.tensors["centres"].shape == std::vector{clusters.num_clusters(), clusters.dimensions()};
  if (!whole) throw Error(path.string() + ": not clusters of texts");
  return clusters;
}

std::string hash_of_clusters(const fs::path& path) {
  return read_safetensors_metadata(path)["xxh3"];
}

TextClusterOptions cluster_options(const Experiment& experiment, int64_t vocab_size) {
  TextClusterOptions options;
  options.vocab_size = vocab_size;
  options.num_clusters = experiment.mixture.experts;
  options.seed = derive_seed(experiment.seed, "text clusters");
  options.threads = static_cast<int>(experiment.device.threads);
  return options;
}

// Rank 0's work, for which the others wait.
void find_clusters(const Run& run, const fs::path& path, const Provenance& made_from) {
  const double start = now_seconds();
  const int64_t seq_length = run.experiment.data.seq_length;
  const TokenFile& tokens = *run.tokens;
  const auto read = [&](uint64_t sequence, std::span<int64_t> out) {
    tokens.read(static_cast<int64_t>(sequence) * seq_length, out);
  };
  const TextClusters clusters =
      cluster_texts(read, tokens.num_sequences(seq_length), seq_length,
                    cluster_options(run.experiment, tokens.info().vocab_size));
  save_clusters(path, clusters, made_from);
  log_info(fmt::format("found {} clusters of the text by TF-IDF in {} dimensions, in {:.1f} s",
                       clusters.num_clusters(), clusters.dimensions(), now_seconds() - start));
}

// Similarities of sequences first, first + 1, ... to the centres by their first `prefix` tokens.
ScoreMatrix rate_sequences(const TextClusters& clusters, const TokenFile& tokens, int64_t first,
                           int64_t count, int64_t seq_length, int64_t prefix, int threads) {
  ScoreMatrix scores(count, clusters.num_clusters());
  parallel_for((count + kRatedRows - 1) / kRatedRows, threads, [&](int64_t piece) {
    stop_if_asked();
    std::vector<int64_t> text(static_cast<size_t>(prefix));
    const int64_t end = std::min(count, (piece + 1) * kRatedRows);
    for (int64_t i = piece * kRatedRows; i < end; ++i) {
      tokens.read((first + i) * seq_length, text);
      rate_clusters(clusters, text, scores.row(i));
    }
  });
  return scores;
}

}  // namespace

void publish_tfidf_shards(const Run& run, const HostCollectives& world,
                          const AssignOptions& assign) {
  const Experiment& experiment = run.experiment;
  const RunLayout& layout = run.layout;
  const TokenFile& tokens = *run.tokens;
  const int64_t seq_length = experiment.data.seq_length;
  const int64_t experts = experiment.mixture.experts;
  const int64_t n = tokens.num_sequences(seq_length);
  const std::string name = hash_text(
      fmt::format("{} {} {} {}", tokens.info().content_hash, seq_length, experts, experiment.seed));
  const std::string request =
      hash_text(fmt::format("tfidf {} {} {}", name, to_string(assign.method),
                            assign.method == AssignmentMethod::optimal ? assign.epsilon : 0));
  const fs::path link = layout.tfidf_shards();
  if (first_rank_says(request_of(link) == request, world)) return;

  const fs::path file = layout.shard_file("tfidf-" + request);
  if (!first_rank_says(fs::exists(file), world)) {
    Provenance made_from = run.provenance;
    made_from["num_tokens"] = std::to_string(tokens.info().num_tokens);
    made_from["seq_length"] = std::to_string(seq_length);
    const fs::path saved = layout.tfidf_clusters(name);
    run_together(world, [&] {
      if (world.rank == 0 && !fs::exists(saved)) find_clusters(run, saved, made_from);
    });
    const auto [first, end] = part_of_range(n, world.rank, world.size);
    ScoreMatrix mine(0, experts);
    run_together(world, [&] {
      mine = rate_sequences(load_clusters(saved), tokens, first, end - first, seq_length,
                            seq_length, assign.threads);
    });
    const LocalScores<float> scores{experts, {{static_cast<uint64_t>(first), mine.values()}}};
    const AssignmentOutcome outcome =
        assign_sequences(scores, balanced_capacities(n, experts), assign, world);
    require_no_empty_shard(outcome.stats.assigned_counts, "the shards by TF-IDF");
    made_from["request"] = request;
    made_from["clusters"] = name;
    made_from["clusters_hash"] = hash_of_clusters(saved);
    write_assignment(file, keep_none(experts), outcome, world, made_from);
  }
  if (world.rank == 0) publish_link(link, file);
  world.barrier();
}

std::optional<TextClusters> clusters_of_control(const RunLayout& layout,
                                                const std::vector<TrainUnit>& units) {
  std::optional<std::string> trained_on;
  for (const TrainUnit& unit : units) {
    if (unit.kind->chosen_by != ChosenBy::nearest_cluster) continue;
    const fs::path model = layout.model(unit.name);
    const std::string own = read_safetensors_metadata(weights_file(model))["shards"];
    if (!trained_on) trained_on = own;
    if (own != *trained_on) {
      throw Error(fmt::format("{} was trained on the shards {}, expert 0 beside it on {}",
                              model.string(), own, *trained_on));
    }
  }
  if (!trained_on) return std::nullopt;
  const std::string& shards = *trained_on;
  const fs::path file = find_shards(layout, layout.tfidf_shards(), shards);
  if (file.empty()) {
    throw Error(
        fmt::format("the shards {} that the control's experts were trained on are no "
                    "longer in {}",
                    shards, layout.shards_folder().string()));
  }
  Provenance made_from = read_shard_info(file).provenance;
  const fs::path saved = layout.tfidf_clusters(made_from["clusters"]);
  if (hash_of_clusters(saved) != made_from["clusters_hash"]) {
    throw Error(fmt::format("{} are not the clusters that {} was made with", saved.string(),
                            file.string()));
  }
  return load_clusters(saved);
}

double sharding_flops(const Experiment& experiment, const TextClusters& clusters,
                      int64_t num_sequences) {
  const int64_t length = experiment.data.seq_length;
  return cluster_flops(num_sequences, length, cluster_options(experiment, clusters.vocab_size())) +
         static_cast<double>(num_sequences) * choice_flops(clusters, length);
}

Assignment nearest_clusters(const TextClusters& clusters, const TokenFile& tokens,
                            int64_t seq_length, int64_t prefix) {
  return argmax_assignment(
      rate_sequences(clusters, tokens, 0, tokens.num_sequences(seq_length), seq_length, prefix, 1));
}

}  // namespace smalltalk
