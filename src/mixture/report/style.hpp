// How the report looks: colours that colour-blind readers can tell apart (after Okabe and Ito),
// also told apart by dashes; light and dark as the reader's system is.
#pragma once

#include <string>

namespace smalltalk::report {

// report.css, with the colours and dashes of the kinds of models in the places of its comments.
std::string style_sheet();

extern const char* const kStyle;   // report.css
extern const char* const kScript;  // report.js: hover over line charts

}  // namespace smalltalk::report
