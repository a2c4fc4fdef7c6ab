// The job `assign` on several test hosts, which speak TCP: the same file as from one process, and
// on the wire what the protocol promises.
#include <fmt/format.h>

#include "assign_fixture.hpp"

namespace smalltalk {
namespace {

using Json = nlohmann::json;

class AssignNetwork : public AssignTest {
 protected:
  static Outcome run_on_hosts(int hosts, const std::string& arguments) {
    return run_command(
        fmt::format("timeout 120 bash {}/ci/network_hosts.sh --hosts {} --ranks 4 -- {} {}",
                    from_environment("SMALLTALK_SOURCE_DIR"), hosts,
                    from_environment("SMALLTALK_BINARY"), arguments));
  }
  // The line of JSON that starts so.
  static Json json_line(const Outcome& outcome, const std::string& start) {
    const size_t at = outcome.output.find(start);
    if (at == std::string::npos) throw std::runtime_error("no line " + start + outcome.output);
    return Json::parse(outcome.output.substr(at, outcome.output.find('\n', at) - at));
  }
  static std::vector<int64_t> sent_bytes(const Outcome& outcome) {
    return json_line(outcome, "{\"hosts\"").at("sent_bytes");
  }
};

TEST_F(AssignNetwork, SendsLittleAndNoScores) {
  constexpr int64_t kSequences = 40'000;
  constexpr int64_t kExperts = 8;
  write_scores(path("s.h5"), random_scores(kSequences, kExperts, -64, -32, 1 << 30), {});
  const std::string options = "--json --threads 1 --no-certificate";
  ASSERT_EQ(run_alone(files("s.h5", "one.h5") + options).exit_code, 0);
  for (const int hosts : {2, 4}) {
    const std::string out = fmt::format("hosts{}.h5", hosts);
    const Outcome outcome = run_on_hosts(hosts, files("s.h5", out) + options);
    if (outcome.exit_code == 77) GTEST_SKIP() << outcome.output;
    ASSERT_EQ(outcome.exit_code, 0) << outcome.output;
    EXPECT_TRUE(read_text(path(out)) == read_text(path("one.h5")));
    // Repeated, the job starts, finds its file and ends: what that sends is not the protocol's.
    const Outcome again = run_on_hosts(hosts, files("s.h5", out) + options);
    ASSERT_EQ(again.exit_code, 0) << again.output;

    // MPI sums a few integers over four ranks in two exchanges, and of those a host sends two to
    // another host, whether it has one rank or two. Each is a frame with up to 134 bytes of
    // headers (Ethernet, IP, TCP, MPI) and may cost one more frame of 66 to confirm another. There
    // are at most b reductions a closing. Beside the selections: two bytes a sequence for who
    // writes the file, and a few sums.
    const Json selection = json_line(outcome, "{\"method\"").at("selection");
    const double predicted = 8 * selection.at("predicted_numbers").get<double>();
    const double reductions = selection.at("key_bits").get<double>() * (kExperts - 1);
    const double assignments = 2.0 * kSequences / hosts;
    const double bound = 2 * (1.5 * predicted + 200 * reductions) + assignments + 8192;
    ASSERT_LT(bound, 4.0 * kSequences * kExperts / hosts);  // what a host's scores would take
    for (int host = 0; host < hosts; ++host) {
      const auto index = static_cast<size_t>(host);
      const int64_t bytes = sent_bytes(outcome)[index] - sent_bytes(again)[index];
      fmt::print("host {} of {}: {} bytes sent, at most {:.0f} expected\n", host, hosts, bytes,
                 bound);
      EXPECT_LT(static_cast<double>(bytes), bound);
      EXPECT_GT(static_cast<double>(bytes), predicted);  // or it was not this wire
    }
  }
}

}  // namespace
}  // namespace smalltalk
