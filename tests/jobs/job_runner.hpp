// Runs the real binary under mpirun on a small corpus made here, and reads what it leaves behind.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "smalltalk/core/system/files.hpp"
#include "smalltalk/core/system/random.hpp"
#include "support/temporary_folder.hpp"

namespace smalltalk {

constexpr int kTimedOut = 124;  // exit code of a job that had to be ended

struct Outcome {
  int exit_code = 0;
  std::string output;  // stdout and stderr
  double seconds = 0;
};

inline int count_of(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

class JobTest : public ::testing::Test {
 protected:
  void SetUp() override {
    write_corpus("train", 1500);
    write_corpus("heldout", 200);
    write_experiment();
  }

  static Outcome run_command(const std::string& command) {
    Outcome outcome;
    const auto start = std::chrono::steady_clock::now();
    FILE* pipe = popen((command + " 2>&1").c_str(), "r");
    if (pipe == nullptr) throw std::runtime_error("popen failed");
    std::array<char, 4096> buffer{};
    while (fgets(buffer.data(), static_cast<int>(buffer.size()), pipe) != nullptr) {
      outcome.output += buffer.data();
    }
    const int status = pclose(pipe);
    outcome.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    outcome.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return outcome;
  }

  // `arguments` under mpirun with so many ranks; their `environment` as "NAME=value" words.
  static std::string command(int ranks, const std::string& arguments,
                             const std::string& environment = "") {
    return "timeout 120 " + from_environment("SMALLTALK_MPIRUN") + " -n " + std::to_string(ranks) +
           " env " + environment + " " + from_environment("SMALLTALK_BINARY") + " " + arguments;
  }
  // CTest says how this machine starts ranks and where the binary is.
  static std::string from_environment(const char* name) {
    const char* value = std::getenv(name);
    if (value == nullptr) throw std::runtime_error(std::string(name) + " is not set: run ctest");
    return value;
  }
  // Environment of a rank that starts without mpirun, which is quicker. Open MPI has one session
  // folder for all of them, which two that begin or end at once would make and remove under each
  // other; so each process of tests has its own.
  static std::string alone() {
    static const TemporaryFolder sessions;
    return "OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_orte_tmpdir_base=" +
           sessions.path().string() + " ";
  }
  static Outcome run_alone(const std::string& arguments, const std::string& environment = "") {
    return run_command("timeout 120 env " + environment + " " + alone() +
                       from_environment("SMALLTALK_BINARY") + " " + arguments);
  }
  static Outcome run_job(int ranks, const std::string& arguments) {
    return run_command(command(ranks, arguments));
  }
  std::string launch(const std::string& out, const std::string& more = "") const {
    return "launch " + experiment().string() + " --out " + (folder_ / out).string() + " " + more;
  }

  std::filesystem::path experiment() const { return folder_ / "experiment.toml"; }
  nlohmann::json results(const std::string& out) const {
    return nlohmann::json::parse(read_text(folder_ / out / "results.json"));
  }

  // Four made-up languages, each with an alphabet of its own out of the same letters.
  void write_corpus(const std::string& name, uint64_t documents) const {
    static constexpr std::array<const char*, 4> kAlphabets = {"abcdefg", "ghijklm", "mnopqrs",
                                                              "stuvwxyz"};
    std::ofstream out(folder_ / (name + ".jsonl"));
    for (uint64_t d = 0; d < documents; ++d) {
      const uint64_t language = derive_seed(3, name, d) % 4;
      const std::string alphabet = kAlphabets[language];
      std::string text;
      for (uint64_t k = 0; k < 40; ++k) {
        const uint64_t word = derive_seed(language, "word", derive_seed(7, name, d, k) % 50);
        for (uint64_t i = 0; i < 3 + word % 4; ++i) {
          text += alphabet[(word >> (8 * i)) % alphabet.size()];
        }
        text += ' ';
      }
      out << nlohmann::json{{"text", text}, {"domain", "language " + std::to_string(language)}}
                 .dump()
          << "\n";
    }
  }

  void write_experiment() const {
    std::ofstream out(experiment());
    const auto path = [&](const std::string& name) {
      return "[\"" + (folder_ / (name + ".jsonl")).string() + "\"]\n";
    };
    out << "name = \"test\"\n[data]\ntrain = " << path("train")
        << "validation = " << path("heldout") << "test = " << path("heldout")
        << "vocab_size = 300\nseq_length = 32\n"
           "[mixture]\nexperts = 4\nprefix_tokens = 8\nrounds = 3\nsequences_per_round = 256\n"
           "[router]\nhidden_size = 8\nnum_layers = 1\nnum_heads = 1\nbatch_size = 8\nlr = 1e-2\n"
           "lr_decay = \"constant\"\n"
           "[expert]\nhidden_size = 16\nnum_layers = 1\nnum_heads = 2\ntrain_steps = 40\n"
           "batch_size = 8\nlr = 1e-2\nsave_interval = 10\nlog_interval = 10\n"
           "[baselines]\ndense = true\ndense_large_batch = true\nrandom_shards = true\n";
  }

  const TemporaryFolder folder_;
};

}  // namespace smalltalk
