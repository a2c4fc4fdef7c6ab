#include "lm/torch/group_store.hpp"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <string>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "smalltalk/core/system/error.hpp"

namespace smalltalk {
namespace {

struct Address {
  std::array<char, 256> host{};
  uint16_t port = 0;  // 0: there is none
};

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

// Of another machine by its name, of this one by the loop, which needs no name to be known.
std::string way_to(const std::string& host) { return host == host_name() ? "localhost" : host; }

}  // namespace

c10::intrusive_ptr<c10d::Store> make_group_store(const HostCollectives& host,
                                                 std::chrono::milliseconds patience) {
  c10d::TCPStoreOptions options;
  options.timeout = patience;
  options.port = 0;
  options.isServer = host.rank == 0;
  options.waitWorkers = false;
  options.numWorkers = static_cast<size_t>(host.size);
  c10::intrusive_ptr<c10d::TCPStore> store;
  Address address;
  std::string problem;
  const auto open = [&](const std::string& name) {
    try {
      store = c10::make_intrusive<c10d::TCPStore>(name, options);
    } catch (const std::exception& error) {
      problem = error.what();
    }
  };
  if (host.rank == 0) {
    open("localhost");
    const char* given = std::getenv("SMALLTALK_GROUP_HOST");
    const std::string name = given != nullptr ? given : host_name();
    std::strncpy(address.host.data(), name.c_str(), address.host.size() - 1);
    if (store) address.port = store->getPort();
  }
  host.broadcast(std::as_writable_bytes(std::span(&address, 1)), 0);
  if (host.rank != 0 && address.port != 0) {
    options.port = address.port;
    open(way_to(address.host.data()));
  }
  double failed = store ? 0 : 1;
  host.all_reduce_max({&failed, 1});
  if (failed == 0) return store;
  throw Error("the ranks of a group cannot reach their first one, " +
              std::string(address.host.data()) + " (SMALLTALK_GROUP_HOST names another address): " +
              (problem.empty() ? "another rank says why" : problem));
}

}  // namespace smalltalk
