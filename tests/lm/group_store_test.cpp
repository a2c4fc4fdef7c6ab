// Ranks of a group find each other over TCP.
#include "lm/torch/group_store.hpp"

#include <gtest/gtest.h>

#include <atomic>

#include "smalltalk/core/system/error.hpp"
#include "support/thread_ranks.hpp"

namespace smalltalk {
namespace {

std::vector<uint8_t> bytes(const std::string& text) { return {text.begin(), text.end()}; }

TEST(GroupStore, WhatOneRankSaysTheOthersHear) {
  run_thread_ranks(3, [](const HostCollectives& host) {
    const auto store = make_group_store(host);
    const std::string mine = "rank " + std::to_string(host.rank);
    store->set(mine, bytes(mine + " is here"));
    for (int rank = 0; rank < 3; ++rank) {
      const std::string other = "rank " + std::to_string(rank);
      EXPECT_EQ(store->get(other), bytes(other + " is here"));
    }
    host.barrier();  // the first rank's store lives until all have read
  });
}

// Two groups of one machine have stores of their own.
TEST(GroupStore, GroupsDoNotMeet) {
  const auto a = make_group_store(HostCollectives()), b = make_group_store(HostCollectives());
  a->set("key", bytes("a"));
  b->set("key", bytes("b"));
  EXPECT_EQ(a->get("key"), bytes("a"));
}

TEST(GroupStore, AnAddressThatLeadsNowhereIsAnErrorOfAllRanks) {
  ::setenv("SMALLTALK_GROUP_HOST", "no-such-host.invalid", 1);
  std::atomic<int> failed = 0;
  run_thread_ranks(2, [&](const HostCollectives& host) {
    try {
      make_group_store(host, std::chrono::seconds(2));
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("no-such-host.invalid"), std::string::npos);
      ++failed;
    }
  });
  ::unsetenv("SMALLTALK_GROUP_HOST");
  EXPECT_EQ(failed, 2);
}

}  // namespace
}  // namespace smalltalk
