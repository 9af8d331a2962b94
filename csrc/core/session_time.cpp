// Stage: engine. Session, what happens because time passes: suspicion, probes, keep-alive,
// dialling.
#include <algorithm>

#include "core/session.h"

namespace tent {

namespace {
constexpr TimeNs kDialAgain = 50 * kMillisecond;
constexpr TimeNs kProbeAgain = 4 * kMillisecond;
}  // namespace

TimeNs Session::tick(TimeNs now) {
  dialogue_.tick(now);
  for (LinkId id : links_.silent(now)) {
    suspect(id, "overdue: the peer answers on other rails but not on this one", now);
  }
  TimeNs next = links_.next_due(now);
  if (links_.size() > 1 && links_.any_overdue(now)) {
    probe(now);
    next = std::min(next, next_probe_);
  }
  if (waits()) {
    next = std::min(next, keep_alive(now));
    ask_for_rails(now);
    next = std::min({next, std::max(next_dial_, now + kMillisecond),
                     now + std::max<TimeNs>(kMillisecond, host_.settings.peer_timeout / 8)});
  }
  flush(now);
  for (const auto& [id, link] : links_.all()) {
    next = std::min({next, link->ack_due(), eager_said_by_});
  }
  return std::min(next, rest_idle(now));
}

// Asks the links that are not overdue whether the peer is alive.
void Session::probe(TimeNs now) {
  if (now < next_probe_) return;
  next_probe_ = now + kProbeAgain;
  for (const auto& [id, link] : links_.all()) link->wants_ping |= link->unacked().empty();
}

TimeNs Session::keep_alive(TimeNs now) {
  TimeNs next = kNever;
  for (const auto& [id, link] : links_.all()) {
    if (!link->unacked().empty()) continue;
    const TimeNs quiet_until =
        std::max({link->last_heard(), link->last_ping, silence_.wanted_since()}) +
        host_.settings.keepalive;
    link->wants_ping |= quiet_until <= now;
    next = std::min(next, std::max(quiet_until, now + kMillisecond));
  }
  return next;
}

void Session::ask_for_rails(TimeNs now) {
  // Links that all keep silent may be dead: another rail, or a new link on the same, may not be.
  const auto carried = [this](const Outbound& outbound) {
    return std::any_of(links_.all().begin(), links_.all().end(), [&](const auto& entry) {
      return (outbound.view.rails & rail_bit(entry.second->info().kind)) != 0 &&
             may_carry(entry.first, outbound.flow);
    });
  };
  give_up_unreachable(now);
  const RailKinds missing =
      links_.all_overdue(now) ? kAllRails : dialogue_.out.missing_rails(carried);
  if (missing == 0) {
    next_dial_ = kNever;
  } else if (next_dial_ == kNever || now >= next_dial_) {
    next_dial_ = now + kDialAgain;
    silence_.spoke(now);
    host_.outbox.dial(peer_, missing);
  }
}

// Flows that may only use links which say that they will never reach their memory.
void Session::give_up_unreachable(TimeNs now) {
  std::vector<std::pair<TransferId, std::string>> hopeless;
  dialogue_.out.each([&](Outbound& outbound) {
    if (outbound.view.rails == kAllRails || !outbound.ready || outbound.slicer.left() == 0) return;
    std::string why;
    for (const auto& [id, link] : links_.all()) {
      if ((outbound.view.rails & rail_bit(link->info().kind)) == 0) continue;
      if (may_carry(id, outbound.flow)) return;
      why = host_.outbox.never_reaches(id, outbound.source, outbound.landing);
      if (why.empty()) return;
    }
    if (!why.empty()) hopeless.emplace_back(outbound.flow, std::move(why));
  });
  for (const auto& [flow, why] : hopeless) {
    dialogue_.source_failed(flow, {Code::Unreachable, why, ""}, now);
  }
}

void Session::add_stats(NodeStats& stats) const {
  for (const auto& [id, link] : links_.all()) {
    LinkStats entry = link->stats;
    entry.link = id;
    entry.peer = peer_;
    entry.info = link->info();
    entry.rate = link->estimate().rate();
    entry.base_latency = link->estimate().base_latency();
    entry.in_flight = link->estimate().in_flight();
    entry.window = link->estimate().window();
    stats.links.push_back(std::move(entry));
  }
}

}  // namespace tent
