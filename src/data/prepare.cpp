#include "smalltalk/data/prepare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <numeric>
#include <thread>

#include "input_part.hpp"
#include "part_file.hpp"
#include "prepare_source.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/hash.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/tokenizer.hpp"

namespace smalltalk {
namespace {

// Network file systems remember for up to a minute that a file was not there.
constexpr double kPatienceSeconds = 90;

void wait_for(const std::filesystem::path& path) {
  const double start = now_seconds();
  while (!std::filesystem::exists(path) && now_seconds() - start < kPatienceSeconds) {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
}

using Bundle = std::vector<InputPart>;

int64_t bytes_of(const Bundle& parts) {
  int64_t bytes = 0;
  for (const InputPart& part : parts) bytes += part.bytes();
  return bytes;
}

int64_t in_megabytes(int64_t bytes) { return (bytes + 999'999) / 1'000'000; }

// Largest first, each to the rank with least to do. The same on every rank, and blind to what is
// done already: ranks may see that differently.
std::vector<size_t> parts_of_rank(const std::vector<Bundle>& parts, int rank, int num_ranks) {
  std::vector<size_t> order(parts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return bytes_of(parts[a]) > bytes_of(parts[b]); });
  std::vector<int64_t> load(static_cast<size_t>(num_ranks));
  std::vector<size_t> mine;
  for (size_t part : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += std::max<int64_t>(bytes_of(parts[part]), 1);
    if (least - load.begin() == rank) mine.push_back(part);
  }
  std::sort(mine.begin(), mine.end());
  return mine;
}

void write_parts(const std::vector<std::filesystem::path>& files, const std::vector<Bundle>& parts,
                 const std::vector<size_t>& mine,
                 const std::vector<std::filesystem::path>& part_files, const DocumentFields& fields,
                 const Tokenizer& tokenizer) {
  int64_t total = 0;
  for (size_t i : mine) total += bytes_of(parts[i]);
  Progress progress("prepare", in_megabytes(total), "MB");
  const double start = now_seconds();
  int64_t done = 0;
  int64_t tokens = 0;
  for (size_t i : mine) {
    if (!read_part_info(part_files[i])) {
      tokens += write_part(part_files[i], files, parts[i], fields, tokenizer).num_tokens;
    }
    done += bytes_of(parts[i]);
    if (stop_requested() && i != mine.back()) throw Stopped();
    const double seconds = std::max(now_seconds() - start, 1e-9);
    progress.update(in_megabytes(done),
                    fmt::format("{} tokens/s", human_count(static_cast<double>(tokens) / seconds)));
  }
}

// What is no error, and yet not as it should be.
void tell_of(const PrepareReport& report, const PrepareOptions& options) {
  const std::string out = options.out.string();
  const std::string& key = options.fields.domain;
  if (!key.empty() && key != DocumentFields().domain && report.num_domains == 0) {
    log_warning(fmt::format("{}: no document has a string \"{}\" (data.domain_key)", out, key));
  }
  if (!report.left_out.empty()) {
    log_warning(fmt::format("{}: files of the folders that are not read: {}", out,
                            describe(report.left_out)));
  }
  if (report.bad.bad() > 0) {
    log_warning(
        fmt::format("{}: {} of {} documents are left out: {} not UTF-8, {} empty, {} broken "
                    "JSON; the first: {}",
                    out, report.bad.bad(), report.bad.documents, report.bad.bad_utf8,
                    report.bad.empty, report.bad.broken_json, report.bad.examples.at(0)));
  }
  if (!report.bad.bent.empty()) {
    log_info(
        fmt::format("{}: read, although not by the rules: {}", out, describe(report.bad.bent)));
  }
}

}  // namespace

PrepareReport prepare_tokens(const PrepareOptions& options) {
  const double start = now_seconds();
  const HostCollectives& ranks = options.ranks;
  const Tokenizer tokenizer(options.tokenizer);
  const bool already_complete = first_rank_says(std::filesystem::exists(options.out), ranks);
  bool has_text = true;
  if (already_complete) {
    run_together(ranks, [&] {
      if (ranks.rank == 0) has_text = require_same_text(options, tokenizer);
    });
  } else {
    const InputFiles inputs = expand_inputs(options.inputs);
    refuse_left_out(inputs, options.max_bad_fraction);
    const std::vector<Bundle> bundles = bundle(cut_into_parts(inputs.files, options.fields));
    const std::filesystem::path folder = options.out.string() + ".parts";
    // Parts of other text, or of a text before it was changed, are no use.
    const std::string key = hash_text(
        fmt::format("{} {} {}", stat_key(inputs.files), to_text(options.fields), tokenizer.hash()));
    std::vector<std::filesystem::path> part_files;
    for (size_t i = 0; i < bundles.size(); ++i) {
      part_files.push_back(folder / key / fmt::format("{:06}", i));
    }
    run_together(ranks, [&] {
      write_parts(inputs.files, bundles, parts_of_rank(bundles, ranks.rank, ranks.size), part_files,
                  options.fields, tokenizer);
    });
    run_together(ranks, [&] {
      if (ranks.rank != 0) return;
      for (const std::filesystem::path& file : part_files) wait_for(file);
      join_parts(options, part_files, bundles, tokenizer, inputs);
      note_seen(options, inputs);
      std::filesystem::remove_all(folder);
    });
    wait_for(options.out);
  }
  PrepareReport report = report_of(options.out);
  refuse_bad_documents(report.bad, options.max_bad_fraction);
  report.already_complete = already_complete;
  report.has_text = has_text;
  if (!already_complete && ranks.rank == 0) tell_of(report, options);
  report.seconds = now_seconds() - start;
  return report;
}

}  // namespace smalltalk
