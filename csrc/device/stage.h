// Stage: device. Everything through which the bytes of GPUs pass: page-locked memory, copies,
// slices that go out and come in. Made by Exchange when memory of a GPU is named for the first
// time; engine lock held. What always holds: nothing in here waits for a GPU.
#pragma once

#include <unordered_map>

#include "core/node.h"
#include "device/alarm.h"
#include "device/arena.h"
#include "device/copies.h"
#include "device/direct.h"
#include "device/incoming.h"
#include "device/outgoing.h"
#include "engine/engine_settings.h"

namespace tent {

// The bounds of the page-locked memory: one for the bytes that go out, and one for those that come
// in, so that two ends which both wait for memory cannot wait for each other.
inline constexpr std::uint64_t kPinnedBytesEachWay = 32u << 20;

class Continuation;  // engine/transfers.h

// What waits for a stream of the caller's.
struct Mark {
  TransferId transfer;  // 0: `then` does
  Continuation* then;
};

class DeviceStage {
 public:
  DeviceStage(Node& node, const EngineSettings& settings, int wait_set,
              std::function<PeerId(LinkId)> peer_of, PinnedArena::Grown grown,
              Trace<TracedCopy>& trace)
      : alarm(wait_set),
        copies(settings.gpu_gather_bytes_max, trace),
        arena(kPinnedBytesEachWay, PinnedArena::kBlockBytes, grown),
        arena_in(kPinnedBytesEachWay, PinnedArena::kBlockBytes, grown),
        out(copies, arena, node, settings.checksum),
        in(copies, arena_in, node),
        direct(copies, node, std::move(peer_of)) {}

  Status open(Device device) {
    Status status = copies.open(device);
    if (status.ok()) status = arena.open(*copies.gpu(device));
    if (status.ok()) status = arena_in.open(*copies.gpu(device));
    if (status.ok()) copies.open_rows(device);
    return status;
  }
  // Nobody tells when a GPU is done: who sleeps must look again soon.
  void set_alarm() { alarm.every(copies_go_on() ? kCopyLook : marks.empty() ? 0 : kMarkLook); }
  // Something is about to end: it is better waited for awake.
  bool ends_soon(TimeNs now) const {
    return (copies_go_on() || !marks.empty()) && now - copies.touched_at() < kSoon;
  }
  bool copying(TransferId transfer) const {
    return out.copying(transfer) || in.copying(transfer) || direct.copying(transfer);
  }
  bool copying_segment(SegmentId segment) const {
    return out.copying_segment(segment) || in.copying_segment(segment) ||
           direct.copying_segment(segment);
  }
  void forget(LinkId link) {
    out.forget(link);
    in.forget(link);
  }

  // Destroyed in the opposite order: the memory before the contexts that locked it.
  Alarm alarm;
  DeviceCopies copies;
  PinnedArena arena, arena_in;
  OutgoingSlices out;
  IncomingSlices in;
  DirectCopies direct;
  std::unordered_map<CopyId, Mark> marks;

 private:
  bool copies_go_on() const { return copies.running() != 0 || out.waiting() || in.waiting(); }

  static constexpr TimeNs kCopyLook = 20 * kMicrosecond, kMarkLook = 50 * kMicrosecond;
  static constexpr TimeNs kSoon = 200 * kMicrosecond;
};

}  // namespace tent
