// A run as one page that a person likes to read: report.html, self-contained (inline style, inline
// SVG, a few lines of script for hover; nothing is loaded from anywhere). It is made of the text
// files of the run folder alone: results.json, routing.jsonl, sharding.json, experiment.toml and
// the metrics.jsonl of the models. What is missing or broken is said in its section; it never fails
// the page.
#pragma once

#include <filesystem>
#include <string>

namespace smalltalk {

// The page as text. The same files give the same bytes. Error: `run` is not a folder.
std::string render_report(const std::filesystem::path& run);

// Renders and writes atomically; an empty `out` stands for RUN/report.html. Returns where it is.
std::filesystem::path write_report(const std::filesystem::path& run,
                                   std::filesystem::path out = {});

}  // namespace smalltalk
