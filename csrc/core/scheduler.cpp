// Stage: scheduler. See the header; the estimates are those of rail_estimate.h.
#include "core/scheduler.h"

#include <algorithm>
#include <tuple>

namespace tent {

namespace {

constexpr TimeNs kGain = 500 * kMicrosecond;  // a copy that comes so little sooner is not worth it

// When a link would be free for more work, as seen by the receiver.
double free_at(const LinkView& link) {
  return double(link.in_flight) / link.rate + double(link.base_latency) + double(link.cost);
}

// When links that get free at these times would together have moved `bytes`.
double drained_at(std::vector<std::pair<double, double>>& links, double bytes) {
  std::sort(links.begin(), links.end());
  double rate = 0, time = 0;
  for (std::size_t i = 0; i < links.size(); ++i) {
    const double moved = rate * (links[i].first - time);
    if (rate > 0 && moved >= bytes) break;
    bytes -= moved;
    time = links[i].first;
    rate += links[i].second;
  }
  return time + bytes / rate;
}

}  // namespace

bool worth_taking(const LinkView& mine, std::span<const LinkView> links, std::uint64_t left) {
  const double take = double(std::min(left, mine.slice_bytes));
  // Links cut different slices. Whoever is first with the smallest of them may always take one:
  // were each compared over its own, all of them could wait for another.
  std::uint64_t least = std::min(left, mine.slice_bytes);
  for (const LinkView& other : links) least = std::min(least, other.slice_bytes);
  std::vector<std::pair<double, double>> others;
  double soonest = -1;  // a slice is not divided: no link finishes one before this
  for (const LinkView& other : links) {
    if (other.link == mine.link) continue;
    const double start = free_at(other), end = start + double(least) / other.rate;
    others.emplace_back(start, other.rate);
    soonest = soonest < 0 ? end : std::min(soonest, end);
  }
  if (others.empty()) return true;
  return free_at(mine) + double(least) / mine.rate <= soonest ||
         free_at(mine) + take / mine.rate <= drained_at(others, double(left));
}

bool worth_doubling(const LinkView& mine, std::uint64_t bytes, const LinkView& other,
                    std::uint64_t ahead) {
  const double end = free_at(mine) + double(bytes) / mine.rate;
  const double wait = double(ahead) / other.rate + double(other.base_latency) + double(other.cost);
  return wait - end > std::max(double(kGain), end);
}

void Scheduler::add(const FlowView& flow) {
  flows_.push_back({flow, next_turn_++});
  total_left_ += flow.left;
  reorder(flows_.size() - 1);
}

void Scheduler::remove(TransferId flow) {
  const auto it = std::find_if(flows_.begin(), flows_.end(),
                               [&](const Entry& entry) { return entry.view.flow == flow; });
  if (it == flows_.end()) return;
  total_left_ -= it->view.left;
  flows_.erase(it);
}

void Scheduler::set_left(TransferId flow, std::uint64_t left) {
  for (Entry& entry : flows_) {
    if (entry.view.flow != flow) continue;
    total_left_ += left - entry.view.left;
    entry.view.left = left;
    return;
  }
}

TransferId Scheduler::next(const LinkView& mine, std::span<const LinkView> links,
                           const std::function<bool(LinkId, TransferId)>& may, TimeNs now) {
  const bool background_due = since_background_ + 1 >= kBackgroundShare;
  const Priority first = background_due ? Priority::Background : Priority::Foreground;
  const Priority second = background_due ? Priority::Foreground : Priority::Background;
  const TimeNs behind = urgent_lately(now) ? kUrgentQueue : kBackgroundQueue;
  const double queue = double(behind + mine.base_latency);
  const bool short_queue = double(mine.in_flight) <= mine.rate * queue;
  TransferId flow = choose(mine, links, first, may);
  if (flow == 0 && (second == Priority::Foreground || short_queue)) {
    flow = choose(mine, links, second, may);
  }
  if (flow != 0 && since_background_ != 0) urgent_at_ = now;
  return flow;
}

std::uint64_t Scheduler::slice_bytes(const LinkView& mine, Priority priority, std::uint64_t least,
                                     TimeNs now) const {
  if (!yields(priority, now)) return mine.slice_bytes;
  const auto little = std::uint64_t(mine.rate * double(kUrgentQueue));
  return std::min(mine.slice_bytes, std::max(least, little));
}

TransferId Scheduler::choose(const LinkView& mine, std::span<const LinkView> links,
                             Priority priority,
                             const std::function<bool(LinkId, TransferId)>& may) {
  std::uint64_t ahead = 0;  // what the other links would do first
  std::vector<LinkView> able;
  for (std::size_t i = 0; i < flows_.size(); ++i) {
    const FlowView& view = flows_[i].view;
    if (view.priority != priority || view.left == 0) continue;
    if ((view.rails & rail_bit(mine.kind)) == 0 || !may(mine.link, view.flow)) continue;
    able.clear();
    for (const LinkView& link : links) {
      if (link.link == mine.link ||
          ((view.rails & rail_bit(link.kind)) != 0 && may(link.link, view.flow))) {
        able.push_back(link);
      }
    }
    ahead += view.left;
    if (!worth_taking(mine, able, ahead)) continue;
    since_background_ = priority == Priority::Background ? 0 : since_background_ + 1;
    const TransferId flow = view.flow;
    flows_[i].turn = next_turn_++;
    reorder(i);
    return flow;
  }
  return 0;
}

void Scheduler::reorder(std::size_t index) {
  const auto key = [](const Entry& e) {
    return std::make_tuple(e.view.priority, e.view.deadline, e.turn);
  };
  const Entry entry = flows_[index];
  flows_.erase(flows_.begin() + std::ptrdiff_t(index));
  const auto place =
      std::upper_bound(flows_.begin(), flows_.end(), entry,
                       [&](const Entry& a, const Entry& b) { return key(a) < key(b); });
  flows_.insert(place, entry);
}

}  // namespace tent
