// How long phases of work take on a device, measured without waiting for it: on the CPU by the
// host's clock, on a GPU by events on the current stream, which are looked at later.
#pragma once

#include <c10/core/Device.h>
#include <c10/core/Event.h>

#include <memory>
#include <vector>

#include "lm/model/phase_seconds.hpp"
#include "smalltalk/core/system/trace.hpp"

namespace smalltalk {

class PhaseClock {
 public:
  explicit PhaseClock(c10::Device device) : device_(device) {}

  // What this thread does in its lifetime belongs to one phase. Also a span of the trace, there by
  // the host's clock: on a GPU the time to launch the work, or to wait for it.
  class Scope {
   public:
    Scope(PhaseClock& clock, const char* name, double PhaseSeconds::*phase);
    ~Scope() noexcept(false);  // an error of the device may come to light here
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    PhaseClock& clock_;
    double PhaseSeconds::*phase_;
    std::unique_ptr<c10::Event> begin_;  // GPUs only
    TraceSpan span_;
  };

  // Now, on the current stream; null on the CPU.
  std::unique_ptr<c10::Event> record_event() const;

  // Sums so far. Waits for the device to come to the end of the last phase: not for every step.
  const PhaseSeconds& seconds();

 private:
  struct Pending {
    double PhaseSeconds::*phase;
    std::unique_ptr<c10::Event> begin, end;
  };

  c10::Device device_;
  PhaseSeconds seconds_;
  std::vector<Pending> pending_;
};

}  // namespace smalltalk
