// The sections of the report, each from the run's files to HTML. A section whose files are missing
// says which, and which job writes them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "mixture/report/data.hpp"

namespace smalltalk::report {

// What the page is about: the mixture, or where there is none the other system.
bool has_mixture(const RunData& data);
const ModelKind& subject(const RunData& data);
// The result in one sentence (plain text): the subject beside the better of the dense models.
std::string headline(const RunData& data);
// By how much the subject's test perplexity lies below this model's: 0.073 for 7.3 %.
std::optional<double> gain_over(const RunData& data, std::string_view model);
// The keys of an object of models in the order of the page: by the table of kinds, then others.
std::vector<std::string> models_in(const nlohmann::json& models);
// The baseline with the lowest test perplexity; null without one.
const ModelKind* best_baseline(const RunData& data);

std::string cards(const RunData& data);
std::string results_section(const RunData& data);
std::string curves_section(const RunData& data);
std::string routing_map_section(const RunData& data);
std::string lory_section(const RunData& data);  // empty without a Lory model
std::string experts_section(const RunData& data);
std::string rounds_section(const RunData& data);
std::string rules_section(const RunData& data);  // empty if nobody compared
std::string tasks_section(const RunData& data);  // empty if nobody ran tasks
std::string domains_section(const RunData& data);
std::string examples_section(const RunData& data);  // empty of fewer than two experts
std::string communication_section(const RunData& data);
std::string time_section(const RunData& data);
std::string experiment_section(const RunData& data);
std::string reading_section();

// Building blocks. `title` and `text` are plain and get escaped, the others are HTML.
std::string html_page(const std::string& title, const std::string& header, const std::string& main);
std::string section(const std::string& id, const std::string& title, const std::string& lede,
                    const std::string& body);
std::string missing(const std::string& text);
std::string model_key(std::string_view model);  // its colour and its label

// A table in a box of its own that scrolls. Cells are HTML; columns are text or numbers.
struct Column {
  std::string title;
  bool number = true;
};
struct Table {
  std::string caption;  // for screen readers
  std::vector<Column> columns;
  std::vector<std::pair<std::string, std::vector<std::string>>> rows;  // class of the row, cells
};
std::string table(const Table& table);

}  // namespace smalltalk::report
