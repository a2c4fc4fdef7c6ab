// What the routers send to each expert: the beginnings of some test sequences.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/utf8.hpp"
#include "smalltalk/data/score_file.hpp"
#include "smalltalk/data/token_file.hpp"
#include "smalltalk/data/tokenizer.hpp"
#include "smalltalk/mixture/run/cells.hpp"

namespace smalltalk::report {
namespace {

constexpr size_t kShownBytes = 240;

struct Routed {
  int64_t sequence = 0;
  size_t second = 0;  // the expert that would take it otherwise
  double lead = 0;    // of the best score over the second best
};

// The sequences of each expert, the clearest first.
std::vector<std::vector<Routed>> routed_sequences(const ScoreFile& scores) {
  const auto experts = static_cast<size_t>(scores.num_experts());
  const auto rows = scores.rows(0, scores.num_sequences());
  std::vector<std::vector<Routed>> routed(experts);
  for (const ScoreBlock<float>& block : rows.blocks) {
    for (size_t at = 0; at < block.values.size(); at += experts) {
      const auto row = block.values.subspan(at, experts);
      size_t best = 0, second = 1;  // ties by expert
      if (row[1] > row[0]) std::swap(best, second);
      for (size_t e = 2; e < experts; ++e) {
        if (row[e] > row[best]) {
          second = std::exchange(best, e);
        } else if (row[e] > row[second]) {
          second = e;
        }
      }
      const double lead = static_cast<double>(row[best]) - static_cast<double>(row[second]);
      if (!std::isfinite(lead)) continue;  // no program of ours writes such scores
      routed[best].push_back(
          {static_cast<int64_t>(block.first_sequence + at / experts), second, lead});
    }
  }
  for (auto& sequences : routed) {
    std::ranges::sort(sequences, [](const Routed& a, const Routed& b) {
      return a.lead != b.lead ? a.lead > b.lead : a.sequence < b.sequence;
    });
  }
  return routed;
}

// The test text of a run, as its models see it.
class TestText {
 public:
  TestText(const RunLayout& layout, const ScoreFile& scores, int64_t seq_length, int64_t prefix)
      : tokens_(layout.tokens("test")),
        tokenizer_(layout.tokenizer()),
        seq_length_(seq_length),
        prefix_(std::min(seq_length, prefix)),
        domains_(read_domains(tokens_.path())),
        domain_(sequence_domains(domains_, tokens_.num_sequences(seq_length), seq_length)) {
    if (value_of(scores.provenance(), "tokens") != tokens_.info().content_hash ||
        scores.num_sequences() != tokens_.num_sequences(seq_length)) {
      throw Error("the routers' scores are not of the text in test.h5");
    }
    if (tokenizer_.hash() != tokens_.info().tokenizer_hash) {
      throw Error("test.h5 was made with another tokenizer");
    }
  }

  // As much of the prefix as a reader wants, on one line, ¶ where a document ends.
  std::string beginning_of(int64_t sequence) const {
    std::vector<int64_t> tokens(static_cast<size_t>(prefix_));
    tokens_.read(sequence * seq_length_, tokens);
    std::string text;
    for (auto first = tokens.begin(); first != tokens.end();) {
      const auto end = std::find(first, tokens.end(), tokens_.info().end_token);
      text += tokenizer_.decode({first, end});
      const bool padding = end == first && first != tokens.begin();
      if (end != tokens.end() && !padding) text += " ¶ ";
      first = end == tokens.end() ? end : end + 1;
    }
    const auto control = [](unsigned char c) { return c < ' ' || c == 127; };
    const auto both_blank = [](char a, char b) { return a == ' ' && b == ' '; };
    std::ranges::replace_if(text, control, ' ');
    text.erase(std::unique(text.begin(), text.end(), both_blank), text.end());
    size_t size = std::min(text.size(), kShownBytes);
    while (size < text.size() && size > 0 && continues_character(text[size])) --size;
    return size < text.size() ? text.substr(0, size) + "…" : text;
  }

  // Empty where nobody labelled it.
  std::string domain_of(int64_t sequence) const {
    const uint16_t domain = domain_[static_cast<size_t>(sequence)];
    return domain == 0 ? "" : domains_.names.at(domain);
  }

 private:
  TokenFile tokens_;
  Tokenizer tokenizer_;
  int64_t seq_length_, prefix_;
  Domains domains_;
  std::vector<uint16_t> domain_;
};

std::string example(const TestText& text, const std::string& kind, const Routed& routed) {
  const std::string domain = text.domain_of(routed.sequence);
  return fmt::format(
      "<li><p><b>{}</b>{} · {}&nbsp;nats before "
      "<span class=\"key {}\"></span>{} · sequence {}</p><q>{}</q></li>",
      kind, domain.empty() ? "" : " · " + escape_html(domain), figure(routed.lead),
      expert_style(routed.second), routed.second, routed.sequence,
      escape_html(text.beginning_of(routed.sequence)));
}

std::string examples_of(const TestText& text, size_t expert, const std::vector<Routed>& routed,
                        int64_t of, bool open) {
  std::string items;
  const size_t n = routed.size();
  const size_t clear = std::min<size_t>(n, 3), close = std::min<size_t>(n - clear, 2);
  for (size_t i = 0; i < clear; ++i) items += example(text, "Clearest", routed[i]);
  if (n > clear + close) items += example(text, "Middle", routed[n / 2]);
  for (size_t i = n - close; i < n; ++i) items += example(text, "Closest", routed[i]);
  return fmt::format(
      "<details{}><summary><span class=\"key {}\"></span><b>Expert {}</b>, {} of {} test sequences"
      "</summary><ul>{}</ul></details>\n",
      open ? " open=\"open\"" : "", expert_style(expert), expert, whole(static_cast<double>(n)),
      whole(static_cast<double>(of)), items);
}

// A whole number that may count tokens, or 0.
int64_t count_at(const nlohmann::json& value, const std::string& key) {
  const double number = number_at(value, key).value_or(0);
  return number >= 1 && number <= 1e9 ? static_cast<int64_t>(number) : 0;
}

}  // namespace

std::string examples_section(const RunData& data) {
  const std::string title = "What each expert is sent";
  const RunLayout layout{data.folder};
  const std::filesystem::path file = routing_cell("test").file(layout);
  const int64_t seq_length = count_at(data.results, "seq_length");
  const int64_t prefix = count_at(data.results, "prefix_tokens");
  if (count_at(data.results, "experts") == 1) return "";
  if (!std::filesystem::exists(file) || seq_length == 0 || prefix == 0) {
    return section("examples", title, "",
                   missing("results.json or the routers' scores in evaluation/test are missing: "
                           "`smalltalk evaluate` writes them."));
  }
  std::string body;
  try {
    const ScoreFile scores(file);
    if (scores.num_experts() < 2) return "";
    const TestText text(layout, scores, seq_length, prefix);
    const auto routed = routed_sequences(scores);
    for (size_t e = 0; e < routed.size(); ++e) {
      body += examples_of(text, e, routed[e], scores.num_sequences(), routed.size() <= 8);
    }
  } catch (const Error& error) {
    return section("examples", title, "", missing(error.what()));
  }
  return section("examples", title,
                 "Beginnings of test sequences, no further than the prefix that the routers read: "
                 "those on which an expert's router leads the next best by most nats, one in the "
                 "middle, and the closest calls. ¶ ends a document.",
                 "<div class=\"grid examples\">" + body + "</div>");
}

}  // namespace smalltalk::report
