// Stage: engine. See the header.
#include "core/inbound.h"

#include <algorithm>
#include <utility>

#include "core/sabotage.h"

namespace tent {

Inbound* InboundFlows::find(TransferId flow) {
  const auto found = flows_.find(flow);
  return found == flows_.end() ? nullptr : &found->second;
}

Inbound& InboundFlows::open(Inbound inbound) {
  const TransferId flow = inbound.flow;
  return flows_.emplace(flow, std::move(inbound)).first->second;
}

void InboundFlows::forget(TransferId flow) {
  flows_.erase(flow);
  over_.add(flow, flow + 1);
}

bool InboundFlows::fits(TransferId flow, std::uint64_t offset, std::uint64_t length) const {
  const auto found = flows_.find(flow);
  if (found == flows_.end()) return over(flow);
  const std::uint64_t bytes = found->second.destination.bytes();
  return length <= bytes && offset <= bytes - length;
}

bool InboundFlows::landing(TransferId flow, std::uint64_t offset, std::uint64_t length,
                           Pieces& out) {
  Inbound* inbound = find(flow);
  if (inbound == nullptr || length > inbound->destination.bytes() ||
      offset > inbound->destination.bytes() - length) {
    return false;
  }
  if (inbound->landed.contains(offset, offset + length)) return false;
  inbound->destination.pieces(offset, length, out);
  return true;
}

Inbound* InboundFlows::landed(TransferId flow, std::uint64_t offset, std::uint64_t length) {
  Inbound* inbound = find(flow);
  if (inbound == nullptr) return nullptr;
  const std::uint64_t fresh = inbound->landed.add(offset, offset + length);
  inbound->counted += sabotage::no_dedup ? length : fresh;
  return fresh == 0 && !sabotage::no_dedup ? nullptr : inbound;
}

std::uint64_t InboundFlows::arrived(TransferId flow, std::uint64_t offset, std::uint64_t length) {
  Inbound* inbound = find(flow);
  return inbound == nullptr ? 0 : inbound->landed.add(offset, offset + length);
}

Inbound* InboundFlows::placed(TransferId flow, std::uint64_t fresh) {
  Inbound* inbound = find(flow);
  if (inbound != nullptr) inbound->counted += fresh;
  return inbound;
}

std::vector<TransferId> InboundFlows::into_segment(SegmentId segment,
                                                   const std::vector<std::int64_t>* blocks) const {
  std::vector<TransferId> flows;
  for (const auto& [flow, inbound] : flows_) {
    if (inbound.transfer != 0 || inbound.segment != segment) continue;
    const bool touched =
        blocks == nullptr || std::any_of(blocks->begin(), blocks->end(), [&](std::int64_t block) {
          return std::binary_search(inbound.blocks.begin(), inbound.blocks.end(), block);
        });
    if (touched) flows.push_back(flow);
  }
  std::sort(flows.begin(), flows.end());
  return flows;
}

}  // namespace tent
