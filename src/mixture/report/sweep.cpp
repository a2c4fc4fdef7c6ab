// The page of a sweep: its tables, each row with its difference from the reference.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <set>

#include "mixture/report/charts.hpp"
#include "mixture/report/format.hpp"
#include "mixture/report/sections.hpp"
#include "smalltalk/core/system/error.hpp"
#include "smalltalk/core/system/log.hpp"
#include "smalltalk/mixture/report/report.hpp"
#include "smalltalk/mixture/run/run_layout.hpp"

namespace smalltalk {

namespace fs = std::filesystem;
using nlohmann::json;

namespace report {
namespace {

std::vector<double> numbers_at(const json& row, const std::string& key) {
  std::vector<double> out;
  for (const json& value : at(row, key)) {
    if (const auto number = number_at(value, "")) out.push_back(*number);
  }
  return out;
}

bool is_reference(const json& row) { return at(row, "reference") == json(true); }

// What all differences of a table lie between, none at all included.
class Differences {
 public:
  explicit Differences(const json& rows) {
    for (const json& row : rows) {
      if (const auto difference = difference_of(row)) include({difference->low, difference->high});
      include(numbers_at(row, "difference_by_seed"));
    }
  }

  std::string chart(const json& row) const {
    const auto difference = difference_of(row);
    if (!difference || is_reference(row)) return "";
    IntervalPlaces places{
        place(difference->low), place(difference->mean), place(difference->high), place(0), {}};
    for (const double of_seed : numbers_at(row, "difference_by_seed")) {
      places.members.push_back(place(of_seed));
    }
    if (places.members.size() == 1) places.members.clear();
    return interval(places, difference->high < 0  ? "better"
                            : difference->low > 0 ? "worse"
                                                  : "undecided");
  }

 private:
  void include(const std::vector<double>& values) {
    for (const double value : values) {
      low_ = std::min(low_, value);
      high_ = std::max(high_, value);
    }
  }
  double place(double nats) const { return high_ > low_ ? (nats - low_) / (high_ - low_) : 0.5; }

  double low_ = 0, high_ = 0;
};

std::string with_note(const std::string& value, const std::string& note) {
  return note.empty() ? value : value + "<small>" + note + "</small>";
}

std::string perplexity_cell(const json& row) {
  const std::string mean = "<b>" + or_dash(number_at(row, "perplexity"), figure) + "</b>";
  const std::vector<double> seeds = numbers_at(row, "perplexity_by_seed");
  if (seeds.size() < 2) return mean;
  const auto [low, high] = std::ranges::minmax(seeds);
  return with_note(mean, figure(low) + " to " + figure(high));
}

// The row that all others are compared with, if it is one.
std::string compared_with(const json& rows) {
  std::string common;
  for (const json& row : rows) {
    const std::string one = text_at(row, "compared_with");
    if (!common.empty() && one != common) return "the reference";
    common = one;
  }
  return common.empty() ? "the reference" : common;
}

std::string difference_cell(const json& row) {
  if (is_reference(row)) return "reference";
  return with_note(escape_html(text_at(row, "verdict")), interval_text(difference_of(row)));
}

// Each seed, as a link where the run has a page.
std::string pages_cell(const fs::path& folder, const std::string& run, const json& seeds) {
  std::string out;
  for (const json& seed : seeds) {
    if (!seed.is_number_unsigned()) continue;
    const fs::path its_folder = SweepLayout{}.run(run, seed.get<uint64_t>());
    const std::string page = RunLayout{its_folder}.report().string();
    std::error_code error;
    out += fs::exists(folder / page, error)
               ? fmt::format("<a href=\"{}\">{}</a> ", escape_html(page), seed.dump())
               : seed.dump() + " ";
  }
  return out;
}

// What it is, and by what its expert is chosen.
std::string model_cell(const json& row) {
  const std::string model = text_at(row, "model");
  std::string label = text_at(row, "label");
  std::erase(label, '*');  // of Markdown
  const auto prefix = number_at(row, "prefix_tokens"), experts = number_at(row, "experts");
  std::string rule = escape_html(text_at(row, "rule"));
  if (experts && *experts > 1) rule += " of " + whole(*experts);
  if (prefix && *prefix > 0) rule += ", " + whole(*prefix) + " tokens";
  rule += step_text(row);
  return with_note(
      fmt::format(
          "<span class=\"key {}\"></span>{}", model_style(model),
          escape_html(label.empty() ? text_at(row, "run") + ": " + model_label(model) : label)),
      rule);
}

// Of the whole training: a checkpoint has no time of its own.
std::string seconds_cell(const json& row, const json& seconds) {
  if (checkpoint_step(row) > 0) return "–";
  const json& of_run = at(seconds, text_at(row, "run"));
  return or_dash(number_at(of_run, text_at(row, "model")), human_duration);
}

std::string table_section(const fs::path& folder, const std::string& id, const json& filled,
                          const json& seconds) {
  const json& rows = at(filled, "rows");
  const json& seeds = at(filled, "seeds");
  const Differences differences(rows);
  Table out;
  out.caption = text_at(filled, "title");
  out.columns = {{"Model", false},
                 {"Perplexity"},
                 {"bits per byte"},
                 {"perplexity differs by"},
                 {"logarithmic scale", false},
                 {"Training FLOPs"},
                 {"Training time"},
                 {"FLOPs per sequence"},
                 {"Seeds", false}};
  for (const json& row : rows) {
    if (!row.is_object()) continue;
    out.rows.push_back(
        {is_reference(row) ? "own" : "",
         {model_cell(row), perplexity_cell(row), or_dash(number_at(row, "bits_per_byte"), figure),
          difference_cell(row), differences.chart(row),
          or_dash(number_at(row, "train_flops"), power_of_ten), seconds_cell(row, seconds),
          or_dash(number_at(row, "inference_flops_per_sequence"), power_of_ten),
          pages_cell(folder, text_at(row, "run"), seeds)}});
  }
  const std::string lede = fmt::format(
      "{} {} sequences of {} documents, {}. Differences are from {}; 95&nbsp;% of the "
      "resamples of a paired bootstrap over documents lie in the interval.",
      or_dash(number_at(filled, "sequences"), whole), escape_html(text_at(filled, "data")),
      or_dash(number_at(filled, "documents"), whole),
      seeds.size() == 1 ? "one seed"
                        : fmt::format("means over {} seeds, which the small dots and the ranges "
                                      "show one by one",
                                      seeds.size()),
      escape_html(compared_with(rows)));
  return section(id, out.caption, lede,
                 out.rows.empty() ? missing("This table has no rows.") : table(out));
}

}  // namespace
}  // namespace report

std::string render_sweep(const fs::path& folder) {
  using namespace report;
  if (!fs::is_directory(folder)) throw Error(folder.string() + ": not a folder");
  std::vector<std::string> problems;
  const json sweep = read_json(SweepLayout{folder}.tables(), problems);
  const json seconds = read_json(SweepLayout{folder}.seconds(), problems);
  const json& tables = at(sweep, "tables");
  std::string links, main;
  std::set<std::pair<std::string, std::string>> runs;  // and seeds
  size_t sections = 0;
  for (const std::string& problem : problems) main += missing(problem);
  if (!tables.is_array() || tables.empty()) {
    main +=
        missing("sweep.json has no tables: `smalltalk sweep` writes them when all runs are done.");
  }
  for (const json& table : tables) {
    const std::string id = fmt::format("table-{}", sections++);
    links += fmt::format("<a href=\"#{}\">{}</a>", id, escape_html(text_at(table, "name")));
    main += table_section(folder, id, table, seconds);
    for (const json& row : at(table, "rows")) {
      for (const json& seed : at(table, "seeds")) runs.emplace(text_at(row, "run"), seed.dump());
    }
  }
  const std::string name = folder_name(folder);
  return html_page(
      name,
      fmt::format("<p class=\"eyebrow\">SmallTalk sweep <b>{}</b></p><h1>{} {}, {} {}</h1>"
                  "<nav aria-label=\"Tables\">{}<a href=\"#reading\">How to read</a></nav>",
                  escape_html(name), runs.size(), runs.size() == 1 ? "run" : "runs", sections,
                  sections == 1 ? "table" : "tables", links),
      main + reading_section());
}

}  // namespace smalltalk
