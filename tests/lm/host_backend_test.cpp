// Collectives that run beside the computation: in order, heard when they fail, left behind when
// nobody else comes.
#include "lm/train/host_backend.hpp"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <future>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

using Sizes = std::vector<size_t>;

// A group of two whose peer holds zeros. Collectives of 3 floats wait for the gate.
struct Peer {
  std::promise<void> opened;
  std::shared_future<void> gate = opened.get_future().share();
  std::mutex mutex;
  Sizes seen;  // of the all-reduces, in the order in which they were run
};

HostCollectives with_peer(const std::shared_ptr<Peer>& peer) {
  HostCollectives host;
  host.size = 2;
  host.all_reduce_sum = [peer](std::span<float> values) {
    if (values.size() == 3) peer->gate.wait();
    if (values.size() == 5) throw Error("the peer is gone");
    const std::lock_guard lock(peer->mutex);
    peer->seen.push_back(values.size());
  };
  return host;
}

c10::intrusive_ptr<c10d::Work> all_reduce(HostBackend& backend, int64_t size) {
  std::vector<at::Tensor> tensors = {at::zeros({size})};
  return backend.allreduce(tensors, c10d::AllreduceOptions());
}

TEST(HostBackendTest, ReturnsAtOnceAndKeepsTheOrder) {
  const auto peer = std::make_shared<Peer>();
  HostBackend backend(with_peer(peer));
  const auto first = all_reduce(backend, 3), second = all_reduce(backend, 1),
             third = all_reduce(backend, 2);
  EXPECT_FALSE(first->isCompleted());  // blocked, and yet we are here
  EXPECT_FALSE(third->isCompleted());
  peer->opened.set_value();
  third->wait();
  EXPECT_TRUE(first->isCompleted());
  EXPECT_TRUE(second->isCompleted());
  EXPECT_EQ(peer->seen, (Sizes{3, 1, 2}));
}

TEST(HostBackendTest, WaitThrowsWhatTheCollectiveThrewAndWhatFollowsFailsToo) {
  const auto peer = std::make_shared<Peer>();
  HostBackend backend(with_peer(peer));
  const auto good = all_reduce(backend, 1), bad = all_reduce(backend, 5),
             later = all_reduce(backend, 2);
  EXPECT_NO_THROW(good->wait());
  for (const auto& work : {bad, later}) {
    try {
      work->wait();
      FAIL();
    } catch (const Error& error) {
      EXPECT_STREQ(error.what(), "the peer is gone");
    }
  }
  EXPECT_EQ(peer->seen, Sizes{1});
}

TEST(HostBackendTest, DoesNotWaitForAPeerThatNeverComes) {
  const auto peer = std::make_shared<Peer>();
  std::optional<HostBackend> backend(with_peer(peer));
  all_reduce(*backend, 3);
  const auto never = all_reduce(*backend, 1);
  backend.reset();  // would hang here
  EXPECT_FALSE(never->isCompleted());
  peer->opened.set_value();
}

TEST(HostBackendTest, RefusesWhatItCannotDo) {
  HostBackend backend(with_peer(std::make_shared<Peer>()));
  std::vector<at::Tensor> tensors = {at::zeros({2})};
  c10d::AllreduceOptions options;
  options.reduceOp = c10d::ReduceOp::MAX;
  EXPECT_THROW(backend.allreduce(tensors, options), Error);
  tensors = {at::zeros({2}, at::kDouble)};
  EXPECT_ANY_THROW(backend.allreduce(tensors, c10d::AllreduceOptions()));
  at::Tensor whole = at::zeros({4}), part = at::zeros({3});
  EXPECT_ANY_THROW(backend._allgather_base(whole, part, c10d::AllgatherOptions()));
}

}  // namespace
}  // namespace smalltalk
