// Stage: engine. See the header.
#include "core/link_set.h"

#include <algorithm>
#include <utility>

namespace tent {

namespace {
constexpr std::size_t kRefusedKept = 64;
constexpr TimeNs kDoubt = 5 * kMillisecond;  // an overdue link may still speak for so long
}  // namespace

Link* LinkSet::find(LinkId link) {
  const auto found = links_.find(link);
  return found == links_.end() ? nullptr : found->second.get();
}

bool LinkSet::add(LinkId id, const LinkInfo& info, TimeNs now) {
  if (std::find(refused_.begin(), refused_.end(), id) != refused_.end()) return false;
  links_.emplace(id, std::make_unique<Link>(id, info, settings_, now));
  return true;
}

std::deque<Unacked> LinkSet::remove(LinkId id) {
  const auto found = links_.find(id);
  if (found == links_.end()) return {};
  std::deque<Unacked> lost = found->second->take_unacked();
  links_.erase(found);
  auto& waiting = fencing_[id];
  for (const Unacked& frame : lost) {
    const bool alone = frame.kind == FrameKind::Slice && is_alone(frame.twin);
    const LinkId also = frame.twin == Twin::Lost ? frame.lost_on : id;
    if (alone) waiting.push_back({frame.flow, frame.span, also});
  }
  return lost;
}

std::vector<LostSlice> LinkSet::fenced(LinkId id) {
  const auto node = fencing_.extract(id);
  if (node.empty()) return {};
  std::vector<LostSlice> free;
  for (const LostSlice& lost : node.mapped()) {
    const auto other = fencing_.find(lost.also);
    std::vector<LostSlice>& to = other == fencing_.end() ? free : other->second;
    to.push_back({lost.flow, lost.span, lost.also});
  }
  return free;
}

void LinkSet::refuse_later(LinkId id) {
  refused_.push_back(id);
  if (refused_.size() > kRefusedKept) refused_.pop_front();
}

void LinkSet::clear() {
  links_.clear();
  fencing_.clear();
}

Link* LinkSet::quickest() {
  Link* best = nullptr;
  for (const auto& [id, link] : links_) {
    if (best == nullptr || link->estimate().eta(0) < best->estimate().eta(0)) best = link.get();
  }
  return best;
}

RailKinds LinkSet::kinds() const {
  RailKinds kinds = 0;
  for (const auto& [id, link] : links_) kinds |= rail_bit(link->info().kind);
  return kinds;
}

bool LinkSet::spoke_elsewhere(const Link& link) const {
  return std::any_of(links_.begin(), links_.end(), [&](const auto& entry) {
    return entry.first != link.id() && entry.second->last_heard() > link.doubted_at;
  });
}

std::vector<LinkId> LinkSet::silent(TimeNs now) {
  std::vector<LinkId> silent;
  for (const auto& [id, link] : links_) {
    if (link->due() > now) continue;
    // Within a host nothing is lost: a GPU that is late is busy, and closing would wait for it.
    if (link->info().kind == RailKind::CudaIpc) continue;
    const std::uint64_t oldest = link->unacked().front().sequence;
    if (link->doubted_sequence != oldest) {
      link->doubted_sequence = oldest;
      link->doubted_at = now;
    } else if (now - link->doubted_at >= kDoubt && spoke_elsewhere(*link)) {
      silent.push_back(id);
    }
  }
  return silent;
}

bool LinkSet::any_overdue(TimeNs now) const {
  return std::any_of(links_.begin(), links_.end(),
                     [&](const auto& entry) { return entry.second->due() <= now; });
}

bool LinkSet::all_overdue(TimeNs now) const {
  return std::all_of(links_.begin(), links_.end(),
                     [&](const auto& entry) { return entry.second->due() <= now; });
}

TimeNs LinkSet::next_due(TimeNs now) const {
  TimeNs next = kNever;
  for (const auto& [id, link] : links_) {
    if (link->due() > now) next = std::min(next, link->due());
  }
  return next;
}

}  // namespace tent
