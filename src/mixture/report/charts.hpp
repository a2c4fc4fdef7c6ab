// Charts of the report. Lines are SVG that stretches to any width; all text is HTML beside it, so
// that it keeps its size on a phone and follows the colours of the page.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "mixture/report/data.hpp"

namespace smalltalk::report {

struct Series {
  std::string label;  // escaped here
  std::string style;  // class of the line: model_style(), expert_style()
  std::vector<Point> points;
  bool thin = false;  // a member of a family: thin, without a key of its own
  std::string note;   // beside the key, e.g. the last value
};

struct LineChart {
  std::string title;  // what a screen reader says
  std::string x_label;
  std::string y_label;
  std::vector<Series> series;
  double y_from_x = 0;  // y covers the points from this x on; what lies above is cut
  bool y_from_zero = false;
  bool whole_x = false;  // x counts something: no ticks between the numbers
};

std::string line_chart(const LineChart& chart);

// One column per row of `rows`, split into shares of its sum: which expert gets how much.
struct StackedColumns {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<std::string> names;         // of the columns
  std::vector<std::vector<double>> rows;  // [columns][experts], counts
};
std::string stacked_columns(const StackedColumns& chart);

// What experts get of domains, or weigh in them. Rows are domains, columns experts: names of
// domains are long, numbers of experts are short.
using Matrix = std::vector<std::vector<double>>;
struct HeatMap {
  std::string caption;
  Matrix by_expert;  // [E][domains], shares of [0, 1]
  // Shares lie far below 1, as where many experts are averaged: the share of the darkest colour,
  // and whether small ones have a decimal.
  double darkest = 1;
  bool decimals = false;
};
// Side by side where they fit. Domains whose largest share in `homes` [E][domains] is of one expert
// stand together, so that specialisation shows as blocks; those without a share are left out.
std::string heat_maps(const std::vector<HeatMap>& maps, const std::vector<std::string>& domains,
                      const Matrix& homes);

// For table cells. Shares are of [0, 1]; `style` as above.
std::string bar(double share, const std::string& style);
// The experts' parts of one bar; values in any unit.
std::string split_bar(const std::vector<double>& parts);
// A difference and what it may be beside nothing: `zero` marks where there is none.
struct IntervalPlaces {
  double low = 0, mean = 0, high = 0, zero = 0;
  std::vector<double> members;  // that the mean is of
};
std::string interval(const IntervalPlaces& places, const std::string& style);
std::string dumbbell(double from, const std::string& from_style, double to,
                     const std::string& to_style);

// Where a value lies between the smallest and largest included, on a logarithmic line: [0, 1].
class LogScale {
 public:
  void include(const std::optional<double>& value);
  double place(double value) const;

 private:
  double low_ = 0;
  double high_ = 0;
};

// Class of a model's or an expert's colour; files may name models that no style sheet knows.
std::string model_style(std::string_view model);
// What else belongs to the mixture, or to what it is compared with, has their colours.
std::string mixture_style();
std::string dense_style();
std::string expert_style(size_t expert);

// Round numbers inside [low, high], about `count`, at least `least_step` apart.
std::vector<double> round_ticks(double low, double high, int count, double least_step = 0);

}  // namespace smalltalk::report
