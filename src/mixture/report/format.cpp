#include "mixture/report/format.hpp"

#include <fmt/format.h>

#include <cmath>

#include "smalltalk/mixture/run/kinds.hpp"

namespace smalltalk::report {

std::string escape_html(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

const nlohmann::json& at(const nlohmann::json& value, std::string_view path) {
  static const nlohmann::json kNull;
  const nlohmann::json* here = &value;
  while (!path.empty()) {
    const size_t slash = path.find('/');
    const std::string key(path.substr(0, slash));
    if (!here->is_object()) return kNull;
    const auto found = here->find(key);
    if (found == here->end()) return kNull;
    here = &*found;
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
  }
  return *here;
}

std::optional<double> number_at(const nlohmann::json& value, std::string_view path) {
  const nlohmann::json& found = at(value, path);
  if (!found.is_number()) return std::nullopt;
  const auto number = found.get<double>();
  return std::isfinite(number) ? std::optional(number) : std::nullopt;
}

std::string text_at(const nlohmann::json& value, std::string_view path) {
  const nlohmann::json& found = at(value, path);
  return found.is_string() ? found.get<std::string>() : std::string();
}

std::vector<std::string> names_at(const nlohmann::json& value, std::string_view path) {
  const nlohmann::json& found = at(value, path);
  std::vector<std::string> names;
  if (!found.is_array()) return names;
  for (const nlohmann::json& name : found) {
    names.push_back(name.is_string() ? name.get<std::string>() : name.dump());
  }
  return names;
}

std::vector<std::vector<double>> matrix_at(const nlohmann::json& value, size_t columns) {
  std::vector<std::vector<double>> out;
  if (!value.is_array()) return out;
  for (const nlohmann::json& row : value) {
    if (!row.is_array() || row.size() != columns) return {};
    std::vector<double> numbers;
    for (const nlohmann::json& x : row) numbers.push_back(x.is_number() ? x.get<double>() : 0);
    out.push_back(std::move(numbers));
  }
  return out;
}

std::string figure(double value) {
  const double size = std::abs(value);
  if (size == 0) return "0";
  if (size >= 1e6 || size < 1e-4) return fmt::format("{:.3g}", value);
  if (size >= 1000) return whole(value);
  if (size >= 100) return fmt::format("{:.1f}", value);
  if (size >= 1) return fmt::format("{:.2f}", value);
  return fmt::format("{:.3g}", value);
}

std::string whole(double value) {
  const std::string digits = fmt::format("{:.0f}", std::abs(value));
  std::string out = value <= -0.5 ? "-" : "";
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) out += ',';
    out += digits[i];
  }
  return out;
}

std::string percent(double share) {
  const double value = 100 * share;
  if (value != 0 && std::abs(value) < 0.1) return fmt::format("{:.2g}\u00a0%", value);
  return fmt::format("{:.1f}\u00a0%", value);
}

std::string power_of_ten(double value) {
  if (std::abs(value) < 1e4) return whole(value);
  auto exponent = static_cast<int>(std::floor(std::log10(std::abs(value))));
  double mantissa = value / std::pow(10.0, exponent);
  if (std::abs(mantissa) >= 9.995) {  // would print as 10.00
    mantissa /= 10;
    ++exponent;
  }
  static const char* const kDigits[] = {"⁰", "¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹"};
  std::string raised;
  for (const char digit : std::to_string(exponent)) raised += kDigits[digit - '0'];
  return fmt::format("{:.2f} × 10{}", mantissa, raised);
}

std::string learning_rate(double value) { return fmt::format("{:.3g}", value); }

std::optional<Interval> difference_of(const nlohmann::json& row) {
  const auto mean = number_at(row, "difference_nats_per_token");
  const nlohmann::json& ends = at(row, "difference_95_percent");
  if (!mean || !ends.is_array() || ends.size() != 2) return std::nullopt;
  const auto low = number_at(ends[0], ""), high = number_at(ends[1], "");
  if (!low || !high) return std::nullopt;
  return Interval{*mean, *low, *high};
}

std::string interval_text(const std::optional<Interval>& difference) {
  if (!difference) return "–";
  const auto percent_more = [](double nats) { return 100 * std::expm1(nats); };
  return fmt::format("{:+.2f}&nbsp;({:+.2f}&nbsp;to&nbsp;{:+.2f})&nbsp;%",
                     percent_more(difference->mean), percent_more(difference->low),
                     percent_more(difference->high));
}

std::string model_label(std::string_view model) {
  const ModelKind* kind = find_kind(model);
  return std::string(kind != nullptr ? kind->label : model);
}

double checkpoint_step(const nlohmann::json& row) { return number_at(row, "step").value_or(0); }

std::string step_text(const nlohmann::json& row) {
  const double step = checkpoint_step(row);
  return step > 0 ? ", step " + whole(step) : "";
}

}  // namespace smalltalk::report
