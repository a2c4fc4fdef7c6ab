// A run as one page that a person likes to read: report.html, self-contained (inline style, inline
// SVG, a few lines of script for hover; nothing is loaded from anywhere). It is made of the files
// of the run folder alone: results.json, routing.jsonl, sharding.json, tasks.json, experiment.toml,
// the metrics.jsonl of the models, and, for examples, the routers' scores of the test text. What is
// missing or broken is said in its section; it never fails the page.
#pragma once

#include <filesystem>
#include <string>

namespace smalltalk {

// The page as text. The same files give the same bytes. Error: `run` is not a folder.
std::string render_report(const std::filesystem::path& run);

// The same of a sweep: the tables of sweep.json, with links to the pages of its runs.
std::string render_sweep(const std::filesystem::path& folder);

// Renders the run or sweep that the folder holds and writes atomically; an empty `out` stands for
// report.html in it. Returns where it is.
std::filesystem::path write_report(const std::filesystem::path& folder,
                                   std::filesystem::path out = {});

}  // namespace smalltalk
