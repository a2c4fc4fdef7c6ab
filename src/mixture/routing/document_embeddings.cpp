#include "mixture/routing/document_embeddings.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <utility>

#include "smalltalk/core/assignment/text_clusters.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/core/system/parallel.hpp"
#include "smalltalk/core/system/provenance.hpp"
#include "smalltalk/core/system/random.hpp"
#include "smalltalk/core/system/stop.hpp"
#include "smalltalk/data/vector_file.hpp"
#include "smalltalk/lm/model/hidden_states.hpp"
#include "smalltalk/lm/model/model_folder.hpp"
#include "smalltalk/lm/model/safetensors.hpp"
#include "smalltalk/lm/model/transformer.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

constexpr int64_t kEmbedded = 4096;  // documents between two lines of progress
// Documents whose sums a rank holds at a time: enough that rows of one length fill a GPU.
constexpr int64_t kSummed = 1 << 14;

// The documents of a token file, without the tokens that end them.
class Documents {
 public:
  explicit Documents(const TokenFile& tokens) : tokens_(tokens), ends_(tokens.document_ends()) {}

  std::vector<int64_t> operator()(uint64_t document) const {
    std::vector<int64_t> text(static_cast<size_t>(length(document)));
    tokens_.read(begin(document), text);
    return text;
  }
  int64_t size() const { return std::ssize(ends_); }
  int64_t begin(uint64_t document) const {
    return document == 0 ? 0 : static_cast<int64_t>(ends_[document - 1]);
  }
  int64_t length(uint64_t document) const {
    return static_cast<int64_t>(ends_[document]) - begin(document) - 1;
  }
  // Of nearly equal parts by tokens, the documents [first, end) of one.
  std::pair<int64_t, int64_t> part(int index, int parts) const {
    const auto [first, end] = part_of_range(tokens_.info().num_tokens, index, parts);
    const auto ended_by = [&](int64_t token) {
      return std::ranges::upper_bound(ends_, static_cast<uint64_t>(token)) - ends_.begin();
    };
    return {ended_by(first), ended_by(end)};
  }

 private:
  const TokenFile& tokens_;
  std::vector<uint64_t> ends_;
};

// Rank 0's, on all ranks. Collective.
void share(std::vector<float>& values, const HostCollectives& ranks) {
  auto size = static_cast<uint64_t>(values.size());
  ranks.broadcast(std::as_writable_bytes(std::span(&size, 1)), 0);
  values.resize(size);
  ranks.broadcast(std::as_writable_bytes(std::span(values)), 0);
}

void scale_to_length_1(std::span<float> vector) {
  double squares = 0;
  for (const float value : vector) squares += static_cast<double>(value) * value;
  if (squares == 0) return;
  const double length = std::sqrt(squares);
  for (float& value : vector) value = static_cast<float>(value / length);
}

// A part of a document that a model reads as one row.
struct Piece {
  int64_t begin = 0;     // its first token
  int64_t length = 0;    // at least 1
  int64_t document = 0;  // counted from the first that are summed at once
};

// Tokens of the row that a piece is read in: of few lengths, so that rows fill a pass, and none
// longer than its text by more than a quarter.
int64_t padded_length(int64_t length, int64_t longest) {
  const int64_t grain =
      std::max<int64_t>(1, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(length))) / 8);
  return std::min(longest, (length + grain - 1) / grain * grain);
}

// By the length of their rows, longest first: so a document's sum is formed in the order of its
// pieces, of which only the last is shorter.
std::map<int64_t, std::vector<Piece>, std::greater<>> cut(const Documents& documents, int64_t first,
                                                          int64_t end, int64_t longest) {
  std::map<int64_t, std::vector<Piece>, std::greater<>> pieces;
  for (int64_t d = first; d < end; ++d) {
    const int64_t begin = documents.begin(d), length = documents.length(d);
    for (int64_t at = 0; at < length; at += longest) {
      const int64_t its = std::min(longest, length - at);
      pieces[padded_length(its, longest)].push_back({begin + at, its, d - first});
    }
  }
  return pieces;
}

// How long the sequences were that the model was trained on. Error: its file does not say; its
// tokenizer is another one.
int64_t trained_length(const Transformer& model, const fs::path& folder, const TokenFile& tokens) {
  const fs::path weights = weights_file(folder);
  const Provenance metadata = read_safetensors_metadata(weights);
  const TokenFileInfo& info = tokens.info();
  const std::string tokenizer = value_of(metadata, "tokenizer");
  const int64_t vocab_size = model.config().vocab_size;
  if (vocab_size != info.vocab_size || (!tokenizer.empty() && tokenizer != info.tokenizer_hash)) {
    throw Error(fmt::format(
        "{} reads {} tokens of tokenizer {}, {} holds {} of {}: take a model of the same "
        "tokenizer, or name the model's in data.tokenizer before prepare",
        weights.string(), vocab_size, tokenizer.empty() ? "unknown" : tokenizer,
        tokens.path().string(), info.vocab_size, info.tokenizer_hash));
  }
  const std::string text = value_of(metadata, "smalltalk.seq_length");
  int64_t length = 0;
  std::from_chars(text.data(), text.data() + text.size(), length);
  if (length >= 1) return length;
  throw Error(
      fmt::format("{} does not say how long the sequences were that it was trained on: it is of "
                  "another program",
                  weights.string()));
}

// Adds to the sums of the documents [.., H] those of pieces that are read in rows of `length`
// tokens.
void add_hidden_states(const Transformer& model, const TokenFile& tokens, int64_t length,
                       const std::vector<Piece>& pieces, std::span<double> sums, Progress& progress,
                       int64_t& done) {
  const int64_t row_tokens = length + 1;  // the last is only a target
  const auto width = static_cast<size_t>(model.config().hidden_size);
  const auto read = [&](int64_t first, int64_t rows, std::span<int64_t> out) {
    std::ranges::fill(out, 0);
    for (int64_t i = 0; i < rows; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(first + i)];
      tokens.read(piece.begin, out.subspan(static_cast<size_t>(i * row_tokens),
                                           static_cast<size_t>(piece.length)));
    }
  };
  std::vector<int64_t> lengths;
  for (const Piece& piece : pieces) lengths.push_back(piece.length);
  visit_hidden_sums(model, {row_tokens, read}, lengths, [&](int64_t row, auto sum) {
    stop_if_asked();
    const Piece& piece = pieces[static_cast<size_t>(row)];
    const auto to = sums.subspan(static_cast<size_t>(piece.document) * width, width);
    std::ranges::transform(to, sum, to.begin(), std::plus<double>());
    progress.update(done += piece.length);
  });
}

}  // namespace

Embeddings embed_by_words(const Run& run, const TokenFile& tokens, const HostCollectives& ranks,
                          int64_t dimensions) {
  const Documents documents(tokens);
  const int threads = static_cast<int>(run.experiment.device.threads);
  TextSpace space;
  run_together(ranks, [&] {
    if (ranks.rank != 0) return;
    log_info(fmt::format("TF-IDF and SVD of {} documents", documents.size()));
    TextSpaceOptions wanted;
    wanted.vocab_size = tokens.info().vocab_size;
    wanted.seed = derive_seed(run.experiment.seed, "document order");
    wanted.dimensions = dimensions;
    wanted.threads = threads;
    space = text_space(documents, documents.size(), wanted);
  });
  share(space.idf, ranks);
  share(space.projection, ranks);

  const auto [first, end] = part_of_range(documents.size(), ranks.rank, ranks.size);
  const int64_t width = space.dimensions();
  std::vector<float> mine(static_cast<size_t>((end - first) * width));
  run_together(ranks, [&, begin = first, last = end] {
    Progress progress("embeddings", last - begin, "documents");
    for (int64_t from = begin; from < last; from += kEmbedded) {
      const int64_t count = std::min(kEmbedded, last - from);
      parallel_for(count, threads, [&](int64_t i) {
        stop_if_asked();
        const std::vector<float> one = embed(space, documents(static_cast<uint64_t>(from + i)));
        std::ranges::copy(one, mine.begin() + (from + i - begin) * width);
      });
      progress.update(from + count - begin);
    }
  });
  return {gather_values<float>(mine, ranks), width};
}

Embeddings embed_by_model(const Run& run, const TokenFile& tokens, const HostCollectives& ranks,
                          const fs::path& folder) {
  const Transformer model = Transformer::load(folder, run.experiment.device);
  const int64_t longest = trained_length(model, folder, tokens);
  const int64_t width = model.config().hidden_size;
  const Documents documents(tokens);
  const auto [first, end] = documents.part(ranks.rank, ranks.size);
  std::vector<float> mine;
  mine.reserve(static_cast<size_t>((end - first) * width));
  run_together(ranks, [&, begin = first, last = end] {
    int64_t total = 0, done = 0;
    for (int64_t d = begin; d < last; ++d) total += documents.length(d);
    Progress progress("embeddings", total, "tokens");
    for (int64_t from = begin; from < last; from += kSummed) {
      const int64_t count = std::min(kSummed, last - from);
      std::vector<double> sums(static_cast<size_t>(count * width));
      for (const auto& [length, pieces] : cut(documents, from, from + count, longest)) {
        add_hidden_states(model, tokens, length, pieces, sums, progress, done);
      }
      for (int64_t i = 0; i < count; ++i) {
        const auto divisor = static_cast<double>(std::max<int64_t>(1, documents.length(from + i)));
        for (int64_t h = 0; h < width; ++h) {
          mine.push_back(static_cast<float>(sums[static_cast<size_t>(i * width + h)] / divisor));
          if (std::isfinite(mine.back())) continue;
          throw Error(fmt::format("{}: its hidden states of document {} are not finite",
                                  weights_file(folder).string(), from + i));
        }
        scale_to_length_1(std::span(mine).last(static_cast<size_t>(width)));
      }
    }
  });
  return {gather_values<float>(mine, ranks), width};
}

Embeddings read_embeddings(const fs::path& path, int64_t documents, const HostCollectives& ranks) {
  const VectorFileInfo info = read_vector_info(path);
  if (info.num_vectors != documents) {
    throw Error(fmt::format("{} holds {} vectors, for {} training documents", path.string(),
                            info.num_vectors, documents));
  }
  const auto [first, end] = part_of_range(documents, ranks.rank, ranks.size);
  std::vector<float> mine = read_vectors(path, first, end - first);
  const auto dimensions = static_cast<size_t>(info.dimensions);
  for (size_t at = 0; at < mine.size(); at += dimensions) {
    scale_to_length_1(std::span(mine).subspan(at, dimensions));
  }
  return {gather_values<float>(mine, ranks), info.dimensions};
}

}  // namespace smalltalk
