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
#include "smalltalk/core/system/error.hpp"
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

int64_t in_megabytes(int64_t bytes) { return (bytes + 999'999) / 1'000'000; }

// Largest first, each to the rank with least to do. The same on every rank, and blind to what is
// done already: ranks may see that differently.
std::vector<size_t> parts_of_rank(const std::vector<InputPart>& parts, int rank, int num_ranks) {
  std::vector<size_t> order(parts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return parts[a].bytes() > parts[b].bytes(); });
  std::vector<int64_t> load(static_cast<size_t>(num_ranks));
  std::vector<size_t> mine;
  for (size_t part : order) {
    const auto least = std::min_element(load.begin(), load.end());
    *least += std::max<int64_t>(parts[part].bytes(), 1);
    if (least - load.begin() == rank) mine.push_back(part);
  }
  std::sort(mine.begin(), mine.end());
  return mine;
}

void write_parts(const std::vector<std::filesystem::path>& files,
                 const std::vector<InputPart>& parts, const std::vector<size_t>& mine,
                 const std::vector<std::filesystem::path>& part_files, const Tokenizer& tokenizer) {
  int64_t total = 0;
  for (size_t i : mine) total += parts[i].bytes();
  Progress progress("prepare", in_megabytes(total), "MB");
  const double start = now_seconds();
  int64_t done = 0;
  int64_t tokens = 0;
  for (size_t i : mine) {
    if (!read_part_info(part_files[i])) {
      tokens +=
          write_part(part_files[i], files[static_cast<size_t>(parts[i].file)], parts[i], tokenizer)
              .num_tokens;
    }
    done += parts[i].bytes();
    if (stop_requested() && i != mine.back()) throw Stopped();
    const double seconds = std::max(now_seconds() - start, 1e-9);
    progress.update(in_megabytes(done),
                    fmt::format("{} tokens/s", human_count(static_cast<double>(tokens) / seconds)));
  }
}

}  // namespace

PrepareReport prepare_tokens(const PrepareOptions& options) {
  const double start = now_seconds();
  const HostCollectives& ranks = options.ranks;
  const Tokenizer tokenizer(options.tokenizer);
  const std::vector<std::filesystem::path> files = expand_inputs(options.inputs);
  const std::string source = source_hash(files, tokenizer.hash());
  const bool already_complete = first_rank_says(std::filesystem::exists(options.out), ranks);
  if (!already_complete) {
    const std::vector<InputPart> parts = cut_into_parts(files);
    const std::filesystem::path folder = options.out.string() + ".parts";
    std::vector<std::filesystem::path> part_files;
    for (size_t i = 0; i < parts.size(); ++i) {
      part_files.push_back(folder / source / fmt::format("{:06}", i));
    }
    run_together(ranks, [&] {
      write_parts(files, parts, parts_of_rank(parts, ranks.rank, ranks.size), part_files,
                  tokenizer);
    });
    run_together(ranks, [&] {
      if (ranks.rank != 0) return;
      for (const std::filesystem::path& file : part_files) wait_for(file);
      join_parts(options, part_files, tokenizer.vocab_size(), tokenizer.hash(), source);
      std::filesystem::remove_all(folder);
    });
    wait_for(options.out);
  }
  PrepareReport report = report_of(options, tokenizer.hash(), source);
  refuse_bad_documents(report.bad, options.max_bad_fraction);
  report.already_complete = already_complete;
  report.seconds = now_seconds() - start;
  return report;
}

}  // namespace smalltalk
