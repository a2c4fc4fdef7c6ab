// The heart of the optimal assignment: rows that already sit somewhere are moved between experts at
// the least loss until the counts fit.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

namespace smalltalk {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Successive shortest paths on the residual graph of the experts (Ahuja, Magnanti, Orlin, "Network
// Flows", 9.7). A row sits where value - price is largest. What it would lose elsewhere is the
// length of an edge from its expert to the other one, and only the shortest edge between two
// experts counts, so that a path is found among E nodes. Prices are the potentials: they change by
// the lengths of the paths, and rows keep sitting where value - price is largest.
//
// Everything depends on the rows in their order alone.
class Transport {
 public:
  // Writes the values [E] of a row.
  using RowValues = std::function<void(int64_t row, std::span<double> values)>;

  // Puts each row where value - price is largest. Of the rows that sit at e, those that would lose
  // up to reach[e * E + f] by going to f, prices counted, are all known here; -infinity says that
  // nothing goes that way.
  // Memory: E^2 edges, 16 bytes for each edge within reach, 2 bytes a row.
  Transport(int64_t num_rows, RowValues row_values, std::vector<double> prices,
            std::span<const double> reach);

  // Moves rows until nobody holds more than it may. excess [E]: what an expert holds above its
  // capacity, rows counted that are not known here. Stops with false where the next step might
  // need a row that is not known; the prices are then better than before, and so are those that
  // one finds when starting from them with the rows that are near by then.
  bool balance(std::vector<int64_t> excess);

  const std::vector<double>& prices() const { return prices_; }  // [E]
  uint16_t expert(int64_t row) const { return expert_[static_cast<size_t>(row)]; }

 private:
  struct Edge {
    double loss;  // value where the row sits - value where it would go, before prices
    uint32_t row;
    // As a heap's order: the smallest on top, ties by row.
    friend bool operator<(const Edge& a, const Edge& b) {
      return a.loss != b.loss ? a.loss > b.loss : a.row > b.row;
    }
  };

  // Adds the edges of a row that sits at `from`; `values` are its own.
  void push_edges(uint32_t row, size_t from, std::span<const double> values, bool as_heap);
  void drop_stale_edges(size_t pair);
  // The expert with room that is nearest to those with excess; E if there is none.
  size_t find_path(const std::vector<int64_t>& excess);

  size_t num_experts_;
  RowValues row_values_;
  std::vector<double> prices_;
  std::vector<uint16_t> expert_;
  std::vector<double> limit_;  // [E, E] all edges with a loss up to this are known
  // [E, E] heaps. Edges whose row has left are dropped when they come to the top.
  std::vector<std::vector<Edge>> edges_;
  std::vector<double> shortest_;  // [E, E] no edge has a smaller loss: top of the heap, or limit
  // Of the last search, [E].
  std::vector<double> distance_;
  std::vector<size_t> previous_;
};

}  // namespace smalltalk
