// Stage: engine. The exported memory of one process: who may touch which bytes.
// Owned by Node; one thread at a time. The only place where a remote Target becomes addresses.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/layout.h"
#include "core/types.h"
#include "core/wire.h"

namespace tent {

struct Plane {
  std::uint64_t base;
  std::uint64_t bytes;
  std::uint64_t block_step = 0;  // in a cache: from one block to the next; 0: bytes / block_count
};

struct Notification {
  PeerId peer;
  std::string payload;
};

struct Segment {
  SegmentId id = 0;
  std::uint64_t key = 0;  // random; whoever knows it may use the rights below
  bool readable = true, writable = false;
  std::vector<Plane> planes;
  std::uint64_t block_count = 0;            // 0: not a block cache
  std::uint32_t epoch = 0;                  // grows with every revocation
  std::vector<std::uint32_t> block_epochs;  // per block: the epoch that revoked it last
  std::deque<Notification> notes;
  Device device = kHost;  // of all planes
};

class Segments {
 public:
  enum class Access { Read, Write };
  // `key` is a random number from the caller (no randomness in here).
  Segment& add(std::vector<Plane> planes, bool readable, bool writable, std::uint64_t block_count,
               std::uint64_t key, Device device = kHost);
  Segment* find(SegmentId id);
  bool remove(SegmentId id);
  // Turns a target into addresses, or says why not. Checks key, rights, planes, bounds (overflow
  // included), block range and block epochs.
  Status resolve(const Target& target, Access access, Layout& out) const;
  // Closes the blocks to all holders of earlier tickets; returns the new epoch.
  std::uint32_t revoke(SegmentId id, const std::vector<std::int64_t>& blocks);

 private:
  SegmentId next_id_ = 1;
  std::unordered_map<SegmentId, Segment> segments_;
};

}  // namespace tent
