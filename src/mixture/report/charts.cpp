#include "mixture/report/charts.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "mixture/report/format.hpp"
#include "smalltalk/mixture/run/kinds.hpp"

namespace smalltalk::report {
namespace {

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();

  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // A flat line still needs a range to lie in.
  void widen(double share) {
    const double margin = high > low ? (high - low) * share : std::max(1e-9, std::abs(low) * 0.1);
    low -= margin;
    high += margin;
  }
  double place(double value) const { return high > low ? (value - low) / (high - low) : 0.5; }
};

std::string tick_label(double value) {
  const double size = std::abs(value);
  const auto scaled = [&](double unit, const char* letter) {
    return fmt::format("{:.4g}{}", value / unit, letter);
  };
  if (size >= 1e12) return fmt::format("{:.3g}", value);
  if (size >= 1e9) return scaled(1e9, " B");
  if (size >= 1e6) return scaled(1e6, " M");
  if (size >= 1e4) return scaled(1e3, " k");
  return fmt::format("{}{:.4g}", value < -1e-12 ? "−" : "", size < 1e-12 ? 0.0 : size);
}

std::string axis(const Range& range, int count, bool vertical, double least_step = 0) {
  std::string out = vertical ? "<div class=\"ys\" aria-hidden=\"true\">"
                             : "<div class=\"xs\" aria-hidden=\"true\">";
  for (const double tick : round_ticks(range.low, range.high, count, least_step)) {
    const double place = 100 * range.place(tick);
    out += fmt::format("<span style=\"{}:{:.2f}%\">{}</span>", vertical ? "bottom" : "left", place,
                       tick_label(tick));
  }
  return out + "</div>";
}

std::string grid(const Range& y, int count) {
  std::string path;
  for (const double tick : round_ticks(y.low, y.high, count)) {
    path += fmt::format("M0 {:.1f}H1000", 1000 - 1000 * y.place(tick));
  }
  return "<path class=\"grid\" d=\"" + path + "\"/>";
}

std::string polyline(const Series& series, const Range& x, const Range& y) {
  std::string points;
  for (const Point& p : series.points) {
    points += fmt::format("{:.1f},{:.1f} ", 1000 * x.place(p.x), 1000 - 1000 * y.place(p.y));
  }
  if (series.points.size() == 1) points += points;  // a dot, by the round end of the line
  if (!points.empty()) points.pop_back();
  return fmt::format("<polyline class=\"line {}{}\" data-label=\"{}\" points=\"{}\"/>",
                     series.style, series.thin ? " thin" : "", escape_html(series.label), points);
}

std::string legend(const std::vector<Series>& all) {
  std::string out = "<ul class=\"legend\">";
  for (const Series& series : all) {
    if (series.thin || series.points.empty()) continue;
    out += fmt::format("<li><span class=\"key {}\"></span>{}{}</li>", series.style,
                       escape_html(series.label),
                       series.note.empty() ? "" : " <b>" + escape_html(series.note) + "</b>");
  }
  return out + "</ul>";
}

}  // namespace

std::vector<double> round_ticks(double low, double high, int count, double least_step) {
  std::vector<double> ticks;
  if (!(high > low) || count < 1) return ticks;
  const double rough = (high - low) / count;
  const double power = std::pow(10.0, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {1.0, 2.0, 2.5, 5.0}) {
    if (factor * power >= rough) {
      step = factor * power;
      break;
    }
  }
  step = std::max(step, least_step);
  const auto first = static_cast<int64_t>(std::ceil(low / step - 1e-9));
  const auto last = static_cast<int64_t>(std::floor(high / step + 1e-9));
  for (int64_t i = first; i <= last; ++i) ticks.push_back(static_cast<double>(i) * step);
  return ticks;
}

std::string line_chart(const LineChart& chart) {
  Range x;
  Range y;
  for (const Series& series : chart.series) {
    for (const Point& p : series.points) {
      x.include(p.x);
      if (p.x >= chart.y_from_x) y.include(p.y);
    }
  }
  if (!(x.high >= x.low) || !(y.high >= y.low)) return "<p class=\"missing\">No points yet.</p>";
  if (x.high == x.low) x.widen(0.1);
  y.widen(0.06);
  if (chart.y_from_zero) y.low = 0;

  std::string lines;
  for (const bool thin : {true, false}) {  // the ones that matter on top
    for (const Series& series : chart.series) {
      if (series.thin == thin && !series.points.empty()) lines += polyline(series, x, y);
    }
  }
  const std::string title = escape_html(chart.title);
  return fmt::format(
      "<figure class=\"chart\" data-x0=\"{}\" data-x1=\"{}\" data-y0=\"{}\" data-y1=\"{}\" "
      "data-x-label=\"{}\"><div class=\"ylab\">{}</div><div class=\"plot\">{}"
      "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">"
      "{}{}</svg><div class=\"cursor\" hidden=\"hidden\"></div>"
      "<div class=\"tip\" hidden=\"hidden\"></div>{}</div>"
      "<div class=\"xlab\">{}</div>{}</figure>\n",
      x.low, x.high, y.low, y.high, escape_html(chart.x_label), escape_html(chart.y_label),
      axis(y, 5, true), title, grid(y, 5), lines, axis(x, 5, false, chart.whole_x ? 1 : 0),
      escape_html(chart.x_label), legend(chart.series));
}

std::string stacked_columns(const StackedColumns& chart) {
  std::string rects;
  std::string names;
  const size_t n = chart.rows.size();
  const size_t every = std::max<size_t>(1, (n + 11) / 12);  // names that fit
  for (size_t i = 0; i < n; ++i) {
    const double total = std::accumulate(chart.rows[i].begin(), chart.rows[i].end(), 0.0);
    const double left = 1000.0 * static_cast<double>(i) / static_cast<double>(n);
    const double width = 1000.0 / static_cast<double>(n);
    double below = 0;
    for (size_t e = 0; e < chart.rows[i].size() && total > 0; ++e) {
      const double share = chart.rows[i][e] / total;
      rects += fmt::format(
          "<rect class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\">"
          "<title>{} {}, router {}: {}</title></rect>",
          expert_style(e), left + 0.08 * width, 1000 * (1 - below - share), 0.84 * width,
          1000 * share, escape_html(chart.x_label), escape_html(chart.names[i]), e, percent(share));
      below += share;
    }
    if (i % every == 0) {
      names += fmt::format("<span style=\"left:{:.2f}%\">{}</span>", (left + width / 2) / 10,
                           escape_html(chart.names[i]));
    }
  }
  const Range share{0, 1};
  std::string ys = "<div class=\"ys\" aria-hidden=\"true\">";
  for (int i = 0; i <= 4; ++i)
    ys += fmt::format("<span style=\"bottom:{}%\">{} %</span>", 25 * i, 25 * i);
  return fmt::format(
      "<figure class=\"chart\"><div class=\"ylab\">{}</div><div class=\"plot\">{}</div>"
      "<svg viewBox=\"0 0 1000 1000\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\">"
      "{}{}</svg><div class=\"xs\" aria-hidden=\"true\">{}</div></div>"
      "<div class=\"xlab\">{}</div></figure>\n",
      escape_html(chart.y_label), ys, escape_html(chart.title), grid(share, 4), rects, names,
      escape_html(chart.x_label));
}

namespace {

size_t home_of(const Matrix& by_expert, size_t domain) {
  size_t best = 0;
  for (size_t e = 0; e < by_expert.size(); ++e) {
    if (by_expert[e][domain] > by_expert[best][domain]) best = e;
  }
  return best;
}

std::string heat_map(const HeatMap& map, const std::vector<std::string>& domains,
                     const std::vector<size_t>& order) {
  const std::string caption = escape_html(map.caption);
  std::string out = "<div class=\"map\"><h3>" + caption +
                    "</h3><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"" +
                    caption + "\"><table class=\"heat\"><thead><tr><th scope=\"col\">" +
                    "Domain</th>";
  for (size_t e = 0; e < map.by_expert.size(); ++e) {
    out += fmt::format(
        "<th scope=\"col\" title=\"expert {0}\"><span class=\"key {1}\"></span>{0}</th>", e,
        expert_style(e));
  }
  out += "</tr></thead><tbody>";
  for (const size_t d : order) {
    out += "<tr><th scope=\"row\">" + escape_html(domains[d]) + "</th>";
    for (size_t e = 0; e < map.by_expert.size(); ++e) {
      const double share = std::clamp(map.by_expert[e][d], 0.0, 1.0);
      const double shade = std::min(share / map.darkest, 1.0);
      const int digits = map.decimals && share < 0.0995 ? 1 : 0;
      out += fmt::format("<td{} style=\"--share:{:.3f}\" title=\"{}, expert {}: {}\">{}</td>",
                         shade > 0.7    ? " class=\"full\""
                         : shade > 0.55 ? " class=\"mid\""
                                        : "",
                         shade, escape_html(domains[d]), e, percent(share),
                         share < 0.005 ? "" : fmt::format("{:.{}f}", 100 * share, digits));
    }
    out += "</tr>";
  }
  return out + "</tbody></table></div></div>";
}

}  // namespace

std::string heat_maps(const std::vector<HeatMap>& maps, const std::vector<std::string>& domains,
                      const Matrix& homes) {
  std::vector<size_t> order;
  for (size_t d = 0; d < domains.size(); ++d) {
    double total = 0;
    for (const auto& row : homes) total += row[d];
    if (total > 0) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return home_of(homes, a) < home_of(homes, b); });
  // Maps of many experts do not fit side by side.
  std::string out = std::string("<div class=\"maps") + (homes.size() > 10 ? " wide" : "") + "\">";
  for (const HeatMap& map : maps) out += heat_map(map, domains, order);
  return out + "</div>";
}

std::string bar(double share, const std::string& style) {
  return fmt::format("<span class=\"bar\"><i class=\"{}\" style=\"width:{:.1f}%\"></i></span>",
                     style, 100 * std::clamp(share, 0.0, 1.0));
}

std::string dumbbell(double from, const std::string& from_style, double to,
                     const std::string& to_style) {
  const double a = 4 + 92 * std::clamp(from, 0.0, 1.0);
  const double b = 4 + 92 * std::clamp(to, 0.0, 1.0);
  return fmt::format(
      "<svg class=\"dumbbell\" aria-hidden=\"true\"><line x1=\"{0:.1f}%\" x2=\"{1:.1f}%\" "
      "y1=\"50%\" "
      "y2=\"50%\"/><circle class=\"{2}\" cx=\"{0:.1f}%\" cy=\"50%\" r=\"4.5\"/><circle "
      "class=\"{3}\" "
      "cx=\"{1:.1f}%\" cy=\"50%\" r=\"5.5\"/></svg>",
      a, b, from_style, to_style);
}

std::string split_bar(const std::vector<double>& parts) {
  const double total = std::accumulate(parts.begin(), parts.end(), 0.0);
  if (!(total > 0)) return "";
  std::string out = "<span class=\"bar split\">";
  for (size_t e = 0; e < parts.size(); ++e) {
    const double share = std::clamp(parts[e] / total, 0.0, 1.0);
    out += fmt::format("<i class=\"{}\" style=\"width:{:.1f}%\" title=\"expert {}: {}\"></i>",
                       expert_style(e), 100 * share, e, percent(share));
  }
  return out + "</span>";
}

std::string interval(const IntervalPlaces& places, const std::string& style) {
  const auto x = [](double place) { return 4 + 92 * std::clamp(place, 0.0, 1.0); };
  std::string out = fmt::format(
      "<svg class=\"interval {0}\" aria-hidden=\"true\"><line class=\"zero\" x1=\"{1:.1f}%\" "
      "x2=\"{1:.1f}%\" y1=\"0\" y2=\"100%\"/><line x1=\"{2:.1f}%\" x2=\"{3:.1f}%\" "
      "y1=\"50%\" y2=\"50%\"/>",
      style, x(places.zero), x(places.low), x(places.high));
  for (const double member : places.members) {
    out += fmt::format("<circle class=\"member\" cx=\"{:.1f}%\" cy=\"50%\" r=\"2.5\"/>", x(member));
  }
  return out + fmt::format("<circle cx=\"{:.1f}%\" cy=\"50%\" r=\"4.5\"/></svg>", x(places.mean));
}

void LogScale::include(const std::optional<double>& value) {
  if (!value || *value <= 0) return;
  low_ = low_ == 0 ? *value : std::min(low_, *value);
  high_ = std::max(high_, *value);
}

double LogScale::place(double value) const {
  return high_ > low_ && value > 0 ? std::log(value / low_) / std::log(high_ / low_) : 0.5;
}

std::string model_style(std::string_view model) {
  const ModelKind* kind = find_kind(model);
  return std::string(kind != nullptr && !kind->colour.name.empty() ? kind->name : "other");
}

std::string mixture_style() { return model_style(first_kind(Role::mixture).name); }

std::string dense_style() { return model_style(first_kind(Role::baseline).name); }

std::string expert_style(size_t expert) { return fmt::format("e{}", expert % 8); }

}  // namespace smalltalk::report
