// Stage: engine. Who waits for a notification in a segment: one bell per segment, rung once, then
// made anew by the next who waits. Under the engine lock; the waiting itself is not.
#pragma once

#include <memory>
#include <unordered_map>

#include "core/types.h"
#include "engine/operations.h"
#include "engine/waitable.h"

namespace tent {

class NoteBells {
 public:
  // Becomes ready with the next notification, or when the segment closes.
  std::shared_ptr<Waitable> of(SegmentId segment) {
    auto& bell = bells_[segment];
    if (!bell) bell = std::make_shared<Waitable>();
    return bell;
  }
  void ring(SegmentId segment, Aftermath& aftermath) {
    const auto found = bells_.find(segment);
    if (found == bells_.end()) return;
    if (found->second->make_ready()) aftermath.sleepers.push_back(std::move(found->second));
    bells_.erase(found);
  }
  void ring_all(Aftermath& aftermath) {
    while (!bells_.empty()) ring(bells_.begin()->first, aftermath);
  }

 private:
  std::unordered_map<SegmentId, std::shared_ptr<Waitable>> bells_;
};

}  // namespace tent
