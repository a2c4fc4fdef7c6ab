#include "mixture/report/style.hpp"

#include <fmt/format.h>

#include <string_view>
#include <utility>

#include "smalltalk/core/system/error.hpp"
#include "smalltalk/mixture/run/kinds.hpp"

namespace smalltalk::report {

std::string style_sheet() {
  std::string light, dark, colours, of_controls, dashes, keys;
  for (const ModelKind& kind : model_kinds()) {
    const auto& [variable, on_light, on_dark] = kind.colour;
    if (variable.empty()) continue;
    light += fmt::format("--{}:{};", variable, on_light);
    dark += fmt::format("--{}:{};", variable, on_dark);
    (kind.role == Role::control ? of_controls : colours) +=
        fmt::format(".{}{{--c:var(--{})}}", kind.name, variable);
    if (kind.dash.line.empty()) continue;
    dashes += fmt::format("{}.line.{}{{stroke-dasharray:{}}}", dashes.empty() ? "" : "\n",
                          kind.name, kind.dash.line);
    keys += fmt::format(".legend .{}{{border-top-style:{}}}", kind.name, kind.dash.key);
  }
  std::string sheet = kStyle;
  for (const auto& [place, text] :
       {std::pair<std::string_view, std::string&>{"models: light", light},
        {"models: dark", dark},
        {"models: colours", colours},
        {"controls: colours", of_controls},
        {"models: dashes", dashes},
        {"models: keys", keys}}) {
    const std::string comment = fmt::format("/* {} */", place);
    const size_t at = sheet.find(comment);
    ST_CHECK(at != std::string::npos);
    sheet.replace(at, comment.size(), text);
  }
  return sheet;
}

}  // namespace smalltalk::report
