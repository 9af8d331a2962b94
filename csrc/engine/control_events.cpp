// Stage: engine. See control_events.h.
#include "engine/control_events.h"

#include <algorithm>
#include <chrono>

#include "engine/clock.h"

namespace tent {

void ControlEvents::add(ControlEvent event) {
  const std::lock_guard lock(mutex_);
  if (event.kind == ControlEvent::Kind::Dial || event.kind == ControlEvent::Kind::Lost) {
    // A dial that comes after a link went to rest is for that link, too.
    const auto same =
        std::find_if(events_.rbegin(), events_.rend(), [&](const ControlEvent& other) {
          const bool rested = other.kind == ControlEvent::Kind::Rested;
          return (other.kind == event.kind || rested) && other.peer == event.peer;
        });
    if (same != events_.rend() && same->kind == event.kind) {
      same->number |= event.number;
      return;
    }
  }
  events_.push_back(std::move(event));
  added_.notify_one();
}

bool ControlEvents::take(TimeNs until, std::deque<ControlEvent>& out) {
  std::unique_lock lock(mutex_);
  const auto something = [&] { return closed_ || !events_.empty(); };
  // Sliced, because the clock of wait_for could not express "for ever".
  while (!something()) {
    const TimeNs left = until - now_ns();
    if (left <= 0) break;
    added_.wait_for(lock, std::chrono::nanoseconds(std::min(left, kSecond)), something);
  }
  out.swap(events_);
  events_.clear();
  return !closed_ || !out.empty();
}

void ControlEvents::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  added_.notify_all();
}

}  // namespace tent
