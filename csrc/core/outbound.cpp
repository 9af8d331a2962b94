// Stage: slicer. See the header.
#include "core/outbound.h"

#include <algorithm>
#include <utility>

namespace tent {

Outbound& OutboundFlows::add(Outbound outbound) {
  const TransferId flow = outbound.flow;
  outbound.slicer = Slicer(outbound.source.bytes());
  outbound.view.flow = flow;
  return flows_.emplace(flow, std::move(outbound)).first->second;
}

Outbound* OutboundFlows::find(TransferId flow) {
  const auto found = flows_.find(flow);
  return found == flows_.end() ? nullptr : &found->second;
}

const Outbound* OutboundFlows::find(TransferId flow) const {
  const auto found = flows_.find(flow);
  return found == flows_.end() ? nullptr : &found->second;
}

void OutboundFlows::start(Outbound& outbound) {
  if (outbound.ready || outbound.cancelling) return;
  if (outbound.held) {
    outbound.wanted = true;
    return;
  }
  outbound.ready = true;
  outbound.view.left = outbound.slicer.left();
  scheduler_.add(outbound.view);
}

void OutboundFlows::release(Outbound& outbound) {
  outbound.held = false;
  if (outbound.wanted) start(outbound);
}

void OutboundFlows::stop(Outbound& outbound) {
  if (outbound.ready) scheduler_.remove(outbound.flow);
  outbound.ready = false;
}

void OutboundFlows::drop(TransferId flow) {
  if (Outbound* outbound = find(flow)) {
    stop(*outbound);
    flows_.erase(flow);
  }
}

SliceSpan OutboundFlows::cut(Outbound& outbound, std::uint64_t wanted) {
  const SliceSpan span = outbound.slicer.next(wanted);
  scheduler_.set_left(outbound.flow, outbound.slicer.left());
  return span;
}

void OutboundFlows::give_back(TransferId flow, SliceSpan span) {
  Outbound* outbound = find(flow);
  if (outbound == nullptr || !outbound->ready) return;
  outbound->slicer.give_back(span);
  scheduler_.set_left(flow, outbound->slicer.left());
}

Outbound* OutboundFlows::by_request(TransferId request) {
  for (auto& [flow, outbound] : flows_) {
    if (outbound.request == request) return &outbound;
  }
  return nullptr;
}

std::vector<TransferId> OutboundFlows::from_segment(SegmentId segment,
                                                    const std::vector<std::int64_t>* blocks) const {
  std::vector<TransferId> flows;
  for (const auto& [flow, outbound] : flows_) {
    if (outbound.request == 0 || outbound.segment != segment) continue;
    const bool touched =
        blocks == nullptr || std::any_of(blocks->begin(), blocks->end(), [&](std::int64_t block) {
          return std::binary_search(outbound.blocks.begin(), outbound.blocks.end(), block);
        });
    if (touched) flows.push_back(flow);
  }
  std::sort(flows.begin(), flows.end());
  return flows;
}

RailKinds OutboundFlows::missing_rails(const std::function<bool(const Outbound&)>& carried) const {
  RailKinds missing = 0;
  for (const auto& [flow, outbound] : flows_) {
    if (outbound.ready && outbound.slicer.left() != 0 && !carried(outbound)) {
      missing |= outbound.view.rails;
    }
  }
  return missing;
}

}  // namespace tent
