#include "smalltalk/mixture/report.hpp"

#include <fmt/format.h>

#include "report_data.hpp"
#include "report_format.hpp"
#include "report_sections.hpp"
#include "smalltalk/core/log.hpp"
#include "smalltalk/core/run_folder.hpp"
#include "smalltalk/mixture/run_layout.hpp"

namespace smalltalk {

namespace fs = std::filesystem;

namespace {

using namespace report;

std::string facts(const RunData& data) {
  std::string out;
  const auto add = [&](const std::string& label, const std::string& path,
                       std::string (*format)(double)) {
    if (const auto value = number_at(data.results, path)) {
      out += fmt::format("<li><b>{}</b> {}</li>", format(*value), label);
    }
  };
  add("experts", "experts", whole);
  add("tokens a sequence", "seq_length", whole);
  add("tokens of prefix", "prefix_tokens", whole);
  add("training tokens", "corpus/train_tokens", human_count);
  add("test tokens", "corpus/test_tokens", human_count);
  add("documents", "corpus/documents", whole);
  add("tokens in the vocabulary", "corpus/vocab_size", whole);
  if (const auto seed = number_at(data.results, "seed"))
    out += "<li>seed <b>" + whole(*seed) + "</b></li>";
  return out.empty() ? "" : "<ul class=\"facts\">" + out + "</ul>";
}

}  // namespace

std::string render_report(const fs::path& run) {
  const RunData data = load_run(run);
  const std::string rules = rules_section(data);
  std::string problems;
  for (const std::string& problem : data.problems) problems += missing(problem);
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n"
         "<meta name=\"color-scheme\" content=\"light dark\"/>\n<title>" +
         escape_html(data.name) + " · SmallTalk</title>\n<style>" + kStyle +
         "</style>\n</head>\n<body>\n<header><p class=\"eyebrow\">SmallTalk run <b>" +
         escape_html(data.name) + "</b></p><h1>" + escape_html(headline(data)) + "</h1>" +
         facts(data) +
         "<nav aria-label=\"Sections\"><a href=\"#results\">Perplexity</a><a "
         "href=\"#curves\">Loss</a>"
         "<a href=\"#map\">Domains</a><a href=\"#experts\">Experts</a><a "
         "href=\"#rounds\">Rounds</a>" +
         (rules.empty() ? "" : "<a href=\"#rules\">Choosing</a>") +
         "<a href=\"#communication\">Communication</a><a "
         "href=\"#time\">Time</a>"
         "<a href=\"#reading\">How to read</a></nav></header>\n<main>\n" +
         problems + cards(data) + results_section(data) + curves_section(data) +
         routing_map_section(data) + domains_section(data) + experts_section(data) +
         rounds_section(data) + rules + communication_section(data) + time_section(data) +
         reading_section() + experiment_section(data) + "</main>\n<script>" + kScript +
         "</script>\n</body>\n</html>\n";
}

fs::path write_report(const fs::path& run, fs::path out) {
  if (out.empty()) out = RunLayout{run}.report();
  write_text_atomically(out, render_report(run));
  return out;
}

}  // namespace smalltalk
