#include "watchdog.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <utility>

#include "smalltalk/comm/ledger.hpp"
#include "smalltalk/core/system/clock.hpp"
#include "smalltalk/core/system/log.hpp"

namespace smalltalk {
namespace {

constexpr int kQuestionTag = 1, kAnswerTag = 2;
constexpr double kPatienceSeconds = 10;  // for an answer, at most

template <size_t N>
void copy_text(const std::string& text, char (&out)[N]) {
  std::memset(out, 0, N);
  std::memcpy(out, text.data(), std::min(text.size(), N - 1));
}

void pause(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

// Receives one message of the given kind, if one is there. Returns its sender or -1.
template <typename Message>
int receive(MPI_Comm comm, int tag, Message& message) {
  int found = 0;
  MPI_Status status;
  MPI_Iprobe(MPI_ANY_SOURCE, tag, comm, &found, &status);
  if (!found) return -1;
  MPI_Recv(&message, sizeof(message), MPI_BYTE, status.MPI_SOURCE, tag, comm, MPI_STATUS_IGNORE);
  return status.MPI_SOURCE;
}

}  // namespace

// Has the other rank come to this collective?
struct Watchdog::Question {
  int64_t id;
  char communicator[MPI_MAX_OBJECT_NAME];
};

struct Watchdog::Answer {
  int64_t id;
  int64_t entered;      // collectives on that communicator
  double idle_seconds;  // without progress
  bool at_end;
  Phase phase;
  char waits_in[160];  // "MPI_Barrier on world", or empty
};

struct Watchdog::Sent {
  std::vector<std::byte> message;
  MPI_Request request = MPI_REQUEST_NULL;
};

Watchdog::Watchdog(MPI_Comm world, double limit_seconds,
                   std::function<void(const std::string&)> complain)
    : world_(world), limit_(limit_seconds), complain_(std::move(complain)) {
  MPI_Comm_rank(world_, &rank_);
  thread_ = std::jthread([this](const std::stop_token& stop) { watch(stop); });
}

Watchdog::~Watchdog() = default;

void Watchdog::send(int rank, int tag, const void* message, size_t size) {
  while (!sent_.empty()) {
    int done = 0;
    MPI_Test(&sent_.front()->request, &done, MPI_STATUS_IGNORE);
    if (!done) break;
    sent_.pop_front();
  }
  const auto* bytes = static_cast<const std::byte*>(message);
  Sent& sent = *sent_.emplace_back(std::make_unique<Sent>(Sent{{bytes, bytes + size}}));
  MPI_Isend(sent.message.data(), static_cast<int>(size), MPI_BYTE, rank, tag, world_,
            &sent.request);
}

void Watchdog::answer_questions() {
  Question question;
  for (int from; (from = receive(world_, kQuestionTag, question)) >= 0;) {
    Answer answer{};
    answer.id = question.id;
    answer.entered = collectives_entered(question.communicator);
    answer.idle_seconds = seconds_without_progress();
    answer.at_end = resting_;
    answer.phase = ledger_phase();
    const WaitState wait = longest_wait();
    if (!wait.members.empty()) copy_text(wait.call + " on " + wait.communicator, answer.waits_in);
    send(from, kAnswerTag, &answer, sizeof(answer));
  }
}

std::string Watchdog::ask_about(const WaitState& wait) {
  Question question{++questions_, {}};
  copy_text(wait.communicator, question.communicator);
  for (const int rank : wait.members) {
    if (rank != rank_) send(rank, kQuestionTag, &question, sizeof(question));
  }
  std::map<int, Answer> answers;
  const double start = now_seconds();
  const double patience = std::min(kPatienceSeconds, std::max(1.0, limit_));
  while (answers.size() + 1 < wait.members.size() && now_seconds() - start < patience) {
    answer_questions();  // others may ask at the same time
    Answer answer;
    const int from = receive(world_, kAnswerTag, answer);
    if (from < 0) {
      pause(0.01);
    } else if (answer.id == question.id) {
      answers[from] = answer;
    }
  }
  const std::string me =
      fmt::format("phase {}: has waited {} in {} on {} ", to_string(ledger_phase()),
                  human_duration(now_seconds() - wait.since), wait.call, wait.communicator);
  bool all_came = true;
  for (const int rank : wait.members) {
    if (rank == rank_) continue;
    const auto found = answers.find(rank);
    if (found == answers.end()) {
      return me + fmt::format(
                      "for rank {}, which does not answer: is it stopped, or its machine "
                      "gone?",
                      rank);
    }
    const Answer& answer = found->second;
    if (answer.entered >= wait.number) continue;
    all_came = false;
    if (answer.at_end) return me + fmt::format("for rank {}, which has come to its end", rank);
    if (answer.idle_seconds < limit_) continue;  // at work
    return me + fmt::format("for rank {}, which made no progress for {} in phase {}{}{}", rank,
                            human_duration(answer.idle_seconds), to_string(answer.phase),
                            *answer.waits_in != '\0' ? ", waiting in " : "", answer.waits_in);
  }
  if (all_came) {
    return me + "though all ranks have come to it: does the network still carry messages?";
  }
  return {};
}

void Watchdog::watch(const std::stop_token& stop) {
  const double tick = std::clamp(limit_ / 20, 0.02, 0.5);
  double next_question = 0;
  while (!stop.stop_requested()) {
    answer_questions();
    if (!resting_) {
      const WaitState wait = longest_wait();
      const double now = now_seconds();
      std::string why;
      if (wait.members.empty()) {
        const double idle = seconds_without_progress();
        if (idle > limit_) {
          why = fmt::format("phase {}: no progress for {}: it hangs, or the limit is too short",
                            to_string(ledger_phase()), human_duration(idle));
        }
      } else if (now - wait.since > limit_ && now > next_question) {
        why = ask_about(wait);
        // In the meantime it may have ended after all.
        if (longest_wait().since != wait.since) why.clear();
        next_question = now_seconds() + limit_ / 2;
      }
      if (!why.empty()) complain_("watchdog: " + why);
    }
    pause(tick);
  }
}

}  // namespace smalltalk
