#include "lm/torch/phase_clock.hpp"

#include <c10/core/impl/VirtualGuardImpl.h>

#include <exception>

namespace smalltalk {

std::unique_ptr<c10::Event> PhaseClock::record_event() const {
  if (device_.is_cpu()) return nullptr;
  const c10::impl::VirtualGuardImpl device(device_.type());
  // BACKEND_DEFAULT: with time stamps.
  auto event = std::make_unique<c10::Event>(device_.type(), c10::EventFlag::BACKEND_DEFAULT);
  event->record(device.getStream(device_));
  return event;
}

PhaseClock::Scope::Scope(PhaseClock& clock, const char* name, double PhaseSeconds::*phase)
    : clock_(clock),
      phase_(phase),
      begin_(clock.record_event()),
      span_(begin_ ? TraceSpan(name) : TraceSpan(name, clock.seconds_.*phase)) {}

PhaseClock::Scope::~Scope() noexcept(false) {
  if (!begin_ || std::uncaught_exceptions() > 0) return;
  clock_.pending_.push_back({phase_, std::move(begin_), clock_.record_event()});
}

const PhaseSeconds& PhaseClock::seconds() {
  for (const Pending& pending : pending_) {
    pending.end->synchronize();
    seconds_.*pending.phase += pending.begin->elapsedTime(*pending.end) / 1e3;  // milliseconds
  }
  pending_.clear();
  return seconds_;
}

}  // namespace smalltalk
