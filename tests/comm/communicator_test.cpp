// Collectives against closed forms, at sizes that are empty, one, odd, around the borders of the
// algorithms, and large.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "../mpi_test.hpp"
#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

const std::vector<size_t> kSizes = {0, 1, 2, 3, 7, 1000, 4097, 16384, 16387, 300'001};

// A value that sums exactly: small integers.
float value(int rank, size_t i) { return static_cast<float>((i * 7 + 3) % 101) * float(rank + 1); }
float sum_of_values(int size, size_t i) {
  return static_cast<float>((i * 7 + 3) % 101) * float(size * (size + 1) / 2);
}

// A value whose sums round, so that the order of summation shows.
template <typename T>
T rough(int rank, size_t i) {
  return static_cast<T>(std::sin(static_cast<double>(i) * 1.7 + rank) *
                        std::exp2(static_cast<double>((i + static_cast<size_t>(rank) * 5) % 24)));
}

TEST(Communicator, Shape) {
  Communicator& world = test_world();
  EXPECT_EQ(world.name(), "world");
  EXPECT_GE(world.rank(), 0);
  EXPECT_LT(world.rank(), world.size());
  world.barrier();
}

TEST(Communicator, AllReduceSum) {
  Communicator& world = test_world();
  for (const size_t n : kSizes) {
    std::vector<float> values(n);
    std::vector<double> doubles(n);
    for (size_t i = 0; i < n; ++i) doubles[i] = values[i] = value(world.rank(), i);
    world.all_reduce_sum(values);
    world.all_reduce_sum(doubles);
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(values[i], sum_of_values(world.size(), i)) << n << " at " << i;
      ASSERT_EQ(doubles[i], sum_of_values(world.size(), i)) << n << " at " << i;
    }
  }
}

TEST(Communicator, AllReduceSumIsTheSumInRankOrder) {
  Communicator& world = test_world();
  for (const size_t n : kSizes) {
    std::vector<float> values(n), expected(n, 0.0f);
    for (size_t i = 0; i < n; ++i) {
      values[i] = rough<float>(world.rank(), i);
      expected[i] = rough<float>(0, i);
      for (int r = 1; r < world.size(); ++r) expected[i] += rough<float>(r, i);
    }
    world.all_reduce_sum(values);
    ASSERT_TRUE(n == 0 || std::memcmp(values.data(), expected.data(), n * sizeof(float)) == 0) << n;
  }
}

TEST(Communicator, AllReduceSumOfMoreThanOnePiece) {
  Communicator& world = test_world();
  const size_t n = (size_t{1} << 22) + 12'345;
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) values[i] = value(world.rank(), i);
  world.all_reduce_sum(values);
  for (size_t i = 0; i < n; ++i) ASSERT_EQ(values[i], sum_of_values(world.size(), i)) << i;
}

TEST(Communicator, AllReduceMax) {
  Communicator& world = test_world();
  EXPECT_EQ(world.all_reduce_max(-world.rank()), 0);
  const int64_t large = int64_t{1} << 40;
  EXPECT_EQ(world.all_reduce_max(large + world.rank()), large + world.size() - 1);
}

TEST(Communicator, Broadcast) {
  Communicator& world = test_world();
  for (const size_t n : kSizes) {
    for (int root = 0; root < world.size(); ++root) {
      std::vector<std::byte> bytes(n, std::byte{0});
      for (size_t i = 0; i < n && world.rank() == root; ++i) bytes[i] = std::byte(i * 31 + 5);
      world.broadcast(bytes, root);
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(bytes[i], std::byte(i * 31 + 5)) << n;
    }
  }
}

TEST(Communicator, ReduceScatterSum) {
  Communicator& world = test_world();
  const auto size = static_cast<size_t>(world.size());
  for (const size_t n : kSizes) {
    std::vector<float> in(n * size), out(n);
    for (size_t i = 0; i < in.size(); ++i) in[i] = value(world.rank(), i);
    world.reduce_scatter_sum(in, out);
    const size_t begin = n * static_cast<size_t>(world.rank());
    for (size_t i = 0; i < n; ++i) {
      ASSERT_EQ(out[i], sum_of_values(world.size(), begin + i)) << n << " at " << i;
    }
  }
}

TEST(Communicator, ReduceScatterSumIntoItsOwnInput) {
  Communicator& world = test_world();
  const size_t n = 129, begin = n * static_cast<size_t>(world.rank());
  std::vector<float> flat(n * static_cast<size_t>(world.size()));
  for (size_t i = 0; i < flat.size(); ++i) flat[i] = value(world.rank(), i);
  world.reduce_scatter_sum(flat, std::span(flat).subspan(begin, n));
  for (size_t i = 0; i < n; ++i) ASSERT_EQ(flat[begin + i], sum_of_values(world.size(), begin + i));
}

TEST(Communicator, AllGather) {
  Communicator& world = test_world();
  const auto size = static_cast<size_t>(world.size());
  for (const size_t n : kSizes) {
    for (const bool in_place : {false, true}) {
      std::vector<float> apart(n), all(n * size, -1.0f);
      const std::span<float> place(all.data() + n * static_cast<size_t>(world.rank()), n);
      const std::span<float> mine = in_place ? place : std::span<float>(apart);
      for (size_t i = 0; i < n; ++i) mine[i] = value(world.rank(), i);
      world.all_gather(mine, all);
      for (size_t i = 0; i < all.size(); ++i) {
        ASSERT_EQ(all[i], value(static_cast<int>(i / n), i % n)) << n;
      }
    }
  }
}

// What rank `from` says to rank `to`: n bytes.
std::vector<std::byte> message(int from, int to, size_t n) {
  std::vector<std::byte> bytes(n);
  for (size_t i = 0; i < n; ++i) {
    bytes[i] = std::byte(i * 31 + i / 251 + static_cast<size_t>(from * 16 + to * 5));
  }
  return bytes;
}

void append(std::vector<std::byte>& all, const std::vector<std::byte>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

// The lengths of the messages from each rank to each: nothing at all, nothing to itself, all to
// one, all from one, all the same, and nothing the same.
const std::vector<size_t (*)(int from, int to, size_t n)> kLengths = {
    [](int, int, size_t) { return size_t{0}; },
    [](int from, int to, size_t n) { return from == to ? 0 : n; },
    [](int, int to, size_t n) { return to == 0 ? n : 0; },
    [](int from, int, size_t n) { return from == 0 ? n : 0; },
    [](int, int, size_t n) { return n; },
    [](int from, int to, size_t n) { return n * static_cast<size_t>((from * 5 + to * 3) % 4); }};

TEST(Communicator, BytesAreGatheredByAllAndByOne) {
  Communicator& world = test_world();
  for (const auto length : kLengths) {
    for (const size_t n : kSizes) {
      const auto block = [&](int r) { return message(r, 0, length(r, 1, n)); };
      std::vector<std::byte> expected;
      for (int r = 0; r < world.size(); ++r) append(expected, block(r));
      ASSERT_TRUE(world.all_gather_bytes(block(world.rank())) == expected) << n;
      for (int root = 0; root < world.size(); ++root) {
        const auto mine = world.gather_bytes(block(world.rank()), root);
        ASSERT_TRUE(mine == (world.rank() == root ? expected : std::vector<std::byte>())) << n;
      }
    }
  }
}

bool was_called(const std::string& call) {
  return std::ranges::any_of(ledger_entries(),
                             [&](const LedgerEntry& entry) { return entry.call == call; });
}

TEST(Communicator, AllToAll) {
  Communicator& world = test_world();
  const int rank = world.rank();
  for (size_t pattern = 0; pattern < kLengths.size(); ++pattern) {
    for (const size_t n : kSizes) {
      std::vector<std::byte> mine, expected;
      std::vector<int64_t> bytes_to;
      for (int r = 0; r < world.size(); ++r) {
        append(mine, message(rank, r, kLengths[pattern](rank, r, n)));
        bytes_to.push_back(static_cast<int64_t>(kLengths[pattern](rank, r, n)));
        append(expected, message(r, rank, kLengths[pattern](r, rank, n)));
      }
      clear_ledger();
      ASSERT_TRUE(world.all_to_all(mine, bytes_to) == expected)
          << "pattern " << pattern << ", n " << n;
      // In one call or in pieces.
      EXPECT_FALSE(was_called("MPI_Alltoallv") && was_called("MPI_Sendrecv"));
    }
  }
}

TEST(Communicator, AllReduceSumOfIntegers) {
  Communicator& world = test_world();
  // Beyond the 53 bits of a double, and negative.
  const auto number = [](int rank, size_t i) {
    const int64_t magnitude = (int64_t{1} << 55) + static_cast<int64_t>(i) * 1'000'003 + rank;
    return (i + static_cast<size_t>(rank)) % 3 == 0 ? -magnitude : magnitude;
  };
  for (const size_t n : kSizes) {
    std::vector<int64_t> values(n), expected(n);
    for (size_t i = 0; i < n; ++i) {
      values[i] = number(world.rank(), i);
      for (int r = 0; r < world.size(); ++r) expected[i] += number(r, i);
    }
    world.all_reduce_sum(values);
    ASSERT_EQ(values, expected) << n;
  }
}

TEST(Communicator, AllReduceMaxOfDoubles) {
  Communicator& world = test_world();
  for (const size_t n : kSizes) {
    std::vector<double> values(n), expected(n, -HUGE_VAL);
    for (size_t i = 0; i < n; ++i) {
      values[i] = rough<double>(world.rank(), i);
      for (int r = 0; r < world.size(); ++r) {
        expected[i] = std::max(expected[i], rough<double>(r, i));
      }
    }
    world.all_reduce_max(values);
    ASSERT_EQ(values, expected) << n;
  }
}

TEST(Communicator, AllGatherStrings) {
  Communicator& world = test_world();
  const auto text = [](int r) {
    return r == 1 ? std::string() : std::string("rank\0", 5) + std::to_string(r * 1000);
  };
  const auto all = world.all_gather_strings(text(world.rank()));
  ASSERT_EQ(all.size(), static_cast<size_t>(world.size()));
  for (int r = 0; r < world.size(); ++r) EXPECT_EQ(all[static_cast<size_t>(r)], text(r));
}

TEST(Communicator, WrongSizesAreRefused) {
  Communicator& world = test_world();
  std::vector<float> a(3), b(3 * static_cast<size_t>(world.size()) + 1);
  EXPECT_THROW(world.all_gather(a, b), Error);
  EXPECT_THROW(world.reduce_scatter_sum(b, a), Error);
  EXPECT_THROW(world.split(-1, 0, "negative"), Error);
  EXPECT_THROW(world.gather_bytes({}, -1), Error);
  EXPECT_THROW(world.gather_bytes({}, world.size()), Error);

  const auto size = static_cast<size_t>(world.size());
  const std::vector<std::byte> bytes(size);
  std::vector<int64_t> bytes_to(size, 1);
  EXPECT_THROW(world.all_to_all(std::span(bytes).first(size - 1), bytes_to), Error);
  bytes_to.push_back(0);
  EXPECT_THROW(world.all_to_all(bytes, bytes_to), Error);
  bytes_to.pop_back();
  if (size > 1) {  // the sum is right
    bytes_to.front() -= 2;
    bytes_to.back() += 2;
    EXPECT_THROW(world.all_to_all(bytes, bytes_to), Error);
  }
}

TEST(Communicator, MpiErrorsAreThrownWithTheirPlace) {
  Communicator& world = test_world();
  std::vector<std::byte> bytes(1);
  try {
    world.broadcast(bytes, world.size() + 5);
    FAIL() << "no root of that rank";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("MPI_Bcast"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("world"), std::string::npos) << e.what();
  }
}

TEST(Communicator, Split) {
  Communicator& world = test_world();
  const int rank = world.rank(), size = world.size();
  Communicator parity = world.split(rank % 2, rank, "parity " + std::to_string(rank % 2));
  EXPECT_EQ(parity.size(), (size + 1 - rank % 2) / 2);
  EXPECT_EQ(parity.rank(), rank / 2);
  std::vector<float> ranks = {float(rank)};
  parity.all_reduce_sum(ranks);
  float expected = 0;
  for (int r = rank % 2; r < size; r += 2) expected += float(r);
  EXPECT_EQ(ranks[0], expected);

  Communicator reversed = world.split(0, -rank, "reversed");
  EXPECT_EQ(reversed.rank(), size - 1 - rank);
  Communicator alone = world.split(rank, 0, "alone");
  EXPECT_EQ(alone.size(), 1);
  parity = std::move(alone);  // frees what it held
  EXPECT_EQ(parity.name(), "alone");
  parity.barrier();
}

TEST(Communicator, HostCollectives) {
  Communicator& world = test_world();
  const HostCollectives c = host_collectives(world);
  EXPECT_EQ(c.rank, world.rank());
  EXPECT_EQ(c.size, world.size());
  const auto size = static_cast<size_t>(c.size);
  std::vector<float> one = {1.0f}, all(size), counts(size, 1.0f), mine(1);
  c.all_reduce_sum(one);
  EXPECT_EQ(one[0], float(c.size));
  c.reduce_scatter_sum(counts, mine);
  EXPECT_EQ(mine[0], float(c.size));
  mine[0] = float(c.rank);
  c.all_gather(mine, all);
  for (size_t r = 0; r < size; ++r) EXPECT_EQ(all[r], float(r));
  std::vector<std::byte> byte = {std::byte(c.rank + 1)};
  c.broadcast(byte, 0);
  EXPECT_EQ(byte[0], std::byte{1});

  std::vector<int64_t> count = {c.rank};
  c.all_reduce_sum_int64(count);
  EXPECT_EQ(count[0], c.size * (c.size - 1) / 2);
  std::vector<double> largest = {-1.0 - c.rank};
  c.all_reduce_max(largest);
  EXPECT_EQ(largest[0], -1.0);
  const std::vector<std::byte> mine_to_each(size, std::byte(c.rank));
  std::vector<std::byte> ranks;
  for (size_t r = 0; r < size; ++r) ranks.push_back(std::byte(r));
  EXPECT_EQ(c.all_to_all(mine_to_each, std::vector<int64_t>(size, 1)), ranks);
  EXPECT_EQ(c.all_gather_bytes(std::span(mine_to_each).first(1)), ranks);
  EXPECT_EQ(c.gather_bytes(std::span(mine_to_each).first(1), c.size - 1),
            c.rank == c.size - 1 ? ranks : std::vector<std::byte>());
  c.barrier();
}

// Without collectives of its own a group of one does the same as MPI does for one rank.
TEST(Communicator, HostCollectivesOfOne) {
  const HostCollectives c;
  std::vector<float> in = {1, 2, 3}, out(3);
  c.all_reduce_sum(in);
  c.reduce_scatter_sum(in, out);
  EXPECT_EQ(in, out);
  const std::vector<std::byte> bytes = {std::byte{1}, std::byte{2}};
  EXPECT_EQ(c.all_to_all(bytes, std::vector<int64_t>{2}), bytes);
  EXPECT_EQ(c.all_gather_bytes(bytes), bytes);
  EXPECT_EQ(c.gather_bytes(bytes, 0), bytes);
}

TEST(Session, Nodes) {
  const auto& nodes = test_session().node_of_rank();
  ASSERT_EQ(nodes.size(), static_cast<size_t>(test_world().size()));
  EXPECT_EQ(nodes[0], 0);
  // By default all are on this machine; or on pretended nodes, or on test hosts.
  int per_node = test_world().size();
  for (const char* name : {"SMALLTALK_RANKS_PER_NODE", "SMALLTALK_TEST_RANKS_PER_HOST"}) {
    if (const char* text = std::getenv(name)) per_node = std::atoi(text);
  }
  for (int r = 0; r < test_world().size(); ++r) EXPECT_EQ(nodes[size_t(r)], r / per_node);
  EXPECT_EQ(test_session().local_rank(), test_world().rank() % per_node);
}

}  // namespace
}  // namespace smalltalk
