// A group of MPI processes trains what one process trains.
#include <gtest/gtest.h>

#include "../mpi_test.hpp"
#include "lm/group_training.hpp"

namespace smalltalk {
namespace {

TEST(GroupTest, TrainsWhatOneProcessTrains) {
  Communicator& world = test_world();
  const ModelConfig model = tiny_model(FeedForward::swiglu, /*tied=*/false);
  const Trained alone = train_in_group(HostCollectives(), model, 0);
  const Trained group = train_in_group(host_collectives(world), model, 1);
  expect_same_training(alone, group);

  // The same bits on every rank.
  std::vector<float> first = group.weights;
  world.broadcast(std::as_writable_bytes(std::span(first)), 0);
  EXPECT_EQ(first, group.weights);
}

}  // namespace
}  // namespace smalltalk
