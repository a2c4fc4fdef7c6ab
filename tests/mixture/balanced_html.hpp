// A check of pages, for who writes HTML by hand.
#pragma once

#include <cctype>
#include <set>
#include <string>
#include <vector>

namespace smalltalk {

// The first tag that is opened and not closed, or closed and not opened; empty if the page is well
// formed. Knows no more of HTML than what the report uses.
inline std::string unbalanced(const std::string& html) {
  static const std::set<std::string> kVoid = {"meta", "br", "link", "img"};
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at)) {
    if (html.compare(at, 2, "<!") == 0) {
      at = html.find('>', at);
      continue;
    }
    const bool closing = html[at + 1] == '/';
    size_t end = at + (closing ? 2 : 1);
    const size_t start = end;
    while (end < html.size() && std::isalnum(static_cast<unsigned char>(html[end])) != 0) ++end;
    const std::string name = html.substr(start, end - start);
    bool quoted = false;
    for (; end < html.size() && (quoted || html[end] != '>'); ++end) quoted ^= html[end] == '"';
    if (name.empty() || end == html.size()) return "a '<' that begins no tag";
    if (closing) {
      if (open.empty() || open.back() != name) return "</" + name + ">";
      open.pop_back();
    } else if (html[end - 1] != '/' && kVoid.count(name) == 0) {
      open.push_back(name);
    }
    // What is inside these is no HTML.
    at = !closing && (name == "script" || name == "style") ? html.find("</" + name, end) : end;
  }
  return open.empty() ? "" : "<" + open.back() + ">";
}

}  // namespace smalltalk
