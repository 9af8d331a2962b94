// Stage: transport. RdmaMemory, what is registered before a transfer comes to it; see memory.h.
#include <algorithm>

#include "transports/rdma/memory.h"

namespace tent {

RdmaWish RdmaMemory::wish(ibv::Pd* pd, RdmaUse use, const Range& range, std::uint64_t number) {
  const std::uint64_t begin = range.begin + number * kPieceBytes;
  return {pd, use, &range, number, begin, std::min(range.end, begin + kPieceBytes), range.device};
}

void RdmaMemory::look_ahead(const Verbs& verbs, ibv::Pd* pd, RdmaUse use, Range& range,
                            std::uint64_t number) {
  const std::uint64_t last = (range.end - range.begin - 1) / kPieceBytes;
  for (std::uint64_t n = number + 1; n <= std::min(last, number + kPiecesAhead); ++n) {
    if (range.refused_ahead) return;
    if (range.pieces.contains({{pd, use}, n})) continue;
    range.asked_ahead = true;
    registrar_.ask(verbs, wish(pd, use, range, n));
  }
}

// One after the other: a range may end meanwhile, and takes its own back.
void RdmaMemory::collect() {
  while (const auto done = registrar_.next_done()) {
    const RdmaWish& asked = done->wish;
    Range& range = *static_cast<Range*>(const_cast<void*>(asked.range));
    // Whoever comes to the piece tries again, and says why it is not possible.
    range.refused_ahead |= done->mr == nullptr;
    if (done->mr == nullptr) continue;
    const Registered made{done->mr, done->dereg, asked.begin, asked.end};
    if (range.pieces.try_emplace({{asked.pd, asked.use}, asked.number}, made).second) {
      count(range, asked.end - asked.begin);
    } else {
      done->dereg(done->mr);
    }
  }
}

}  // namespace tent
