// Figures and texts as a reader of the report sees them.
#pragma once

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "smalltalk/mixture/evaluation/bootstrap.hpp"

namespace smalltalk::report {

// What a run goes through, in order: phases as comm/ledger.hpp names them, and "tfidf", which takes
// time within one. Others come behind.
inline constexpr std::array<std::string_view, 14> kPhases = {
    "start",   "prepare",   "order", "route",    "tfidf",   "shard", "assign",
    "experts", "baselines", "train", "evaluate", "compare", "tasks", "end"};

// Everything that comes from a file passes through this on its way into the page.
std::string escape_html(std::string_view text);

// The number at `path` ("perplexity/all"), or nothing: absent, null (what JSON makes of a NaN), not
// a number, not finite. Files of a run may be of another version or written by hand.
std::optional<double> number_at(const nlohmann::json& value, std::string_view path);
// The text, array or object there; empty where there is none.
std::string text_at(const nlohmann::json& value, std::string_view path);
const nlohmann::json& at(const nlohmann::json& value, std::string_view path);  // null if absent

// The names of an array there; none where there is no array.
std::vector<std::string> names_at(const nlohmann::json& value, std::string_view path);
// Rows of so many columns that hold numbers; none where there is no such matrix.
std::vector<std::vector<double>> matrix_at(const nlohmann::json& value, size_t columns);

std::string figure(double value);         // 3 to 4 digits that matter: 18.24, 131.2, 0.0312
std::string whole(double value);          // 142,448
std::string percent(double share);        // 0.0734 -> "7.3 %", with a space that does not break
std::string power_of_ten(double value);   // FLOPs: "3.97 × 10¹⁴"
std::string learning_rate(double value);  // "0.003", "3e-05"
std::string model_label(std::string_view model);  // "dense_large_batch" -> "Dense, large batch"

// A row's difference from the reference in nats per token, as comparisons and sweeps write it.
std::optional<Interval> difference_of(const nlohmann::json& row);
// "-19.61 (-20.10 to -19.12) %" of perplexity, with spaces that do not break.
std::string interval_text(const std::optional<Interval>& difference);

// Of a row about a checkpoint; 0 if its models are trained to the end.
double checkpoint_step(const nlohmann::json& row);
std::string step_text(const nlohmann::json& row);  // ", step 500", or nothing

// f(value) or a dash for what is not there.
template <typename F>
std::string or_dash(const std::optional<double>& value, F&& f) {
  return value ? f(*value) : std::string("–");
}

}  // namespace smalltalk::report
