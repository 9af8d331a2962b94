// Stage: engine. Session, links that carry nothing: closed after a time, and asked for again when
// there is something to carry.
#include <algorithm>

#include "core/session.h"

namespace tent {

TimeNs Session::idle_since(LinkId id) const {
  const auto found = links_.all().find(id);
  const bool wanted = waits() || found == links_.all().end();
  return wanted ? kNever : found->second->idle_since();
}

// Only links that hold a queue pair and its buffers: a socket costs little. Returns when to look
// again.
TimeNs Session::rest_idle(TimeNs now) {
  const TimeNs after = host_.settings.rest_after;
  if (after == kNever || waits()) return kNever;
  TimeNs next = kNever;
  for (const LinkId id : links()) {
    if (links_.find(id)->info().kind != RailKind::Rdma) continue;
    const TimeNs since = idle_since(id);
    if (since == kNever) {
      next = std::min(next, now + after);
    } else if (since + after <= now) {
      rest(id);
    } else {
      next = std::min(next, since + after);
    }
  }
  return next;
}

void Session::rest(LinkId id) {
  if (links_.find(id) == nullptr) return;
  host_.outbox.rest(id);
  forget_rested(id);
}

bool Session::link_rested(LinkId id, TimeNs now) {
  const Link* link = links_.find(id);
  if (link == nullptr) return true;
  if (!link->unacked().empty()) {
    link_down(id, now);
    return false;
  }
  forget_rested(id);
  return true;
}

void Session::forget_rested(LinkId id) {
  resting_ |= rail_bit(links_.find(id)->info().kind);
  links_.remove(id);
  links_.fenced(id);  // nothing waits for it
  dialogue_.out.each([](Outbound& outbound) { outbound.reach.clear(); });
}

// There is something to carry: links that rest may be of use again.
void Session::wake_rails() {
  if (resting_ == 0 || !dialogue_.out.scheduler().any_left()) return;
  host_.outbox.dial(peer_, resting_);
  resting_ = 0;
}

}  // namespace tent
