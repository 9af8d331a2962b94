// Stage: slicer. See the header.
#include "core/slicer.h"

namespace tent {
namespace {

// Cuts lie at multiples of this, so that memory that is aligned stays so for whoever copies it.
constexpr std::uint64_t kGrain = 256;

}  // namespace

SliceSpan Slicer::next(std::uint64_t wanted) {
  if (!returned_.empty()) {
    const SliceSpan span = returned_.back();
    returned_.pop_back();
    returned_bytes_ -= span.bytes;
    return span;
  }
  const std::uint64_t rest = bytes_ - cursor_;
  if (wanted > kGrain) wanted -= wanted % kGrain;
  // A crumb at the end is not worth a slice of its own.
  const std::uint64_t take = rest <= wanted + wanted / 4 ? rest : wanted;
  const SliceSpan span{cursor_, take};
  cursor_ += take;
  return span;
}

void Slicer::give_back(SliceSpan span) {
  returned_.push_back(span);
  returned_bytes_ += span.bytes;
}

}  // namespace tent
