// Stage: transport. One pure interface; everything above it is the same for all.
// Thread: only the thread that holds the engine lock calls it. Calls return at once.
// A transport never keeps an address between calls: it asks the Receiver each time it touches
// memory, so that what was cancelled or fenced meanwhile is not touched.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/types.h"
#include "core/wire.h"

namespace tent {

// The engine's side, called from inside poll() and send().
class Receiver {
 public:
  virtual ~Receiver() = default;
  virtual bool frame(LinkId link, const FrameHeader& header,
                     std::span<const std::uint8_t> body) = 0;  // false: malformed, close the link
  virtual bool slice(LinkId link, const FrameHeader& header) = 0;
  virtual bool landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
                       Pieces& out) = 0;  // false: read and drop; nothing in `out`: ask later
  // The same for a device that places bytes by itself: it may also name memory that no processor
  // touches. Then all bytes of that slice must be placed so.
  virtual bool landing_of_device(LinkId link, TransferId flow, std::uint64_t offset,
                                 std::uint64_t length, Pieces& out) {
    return landing(link, flow, offset, length, out);
  }
  virtual bool landed(LinkId link, const FrameHeader& header) = 0;
  virtual bool source(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
                      Pieces& out) = 0;  // false: send filler
  // The link died by itself or the peer closed it. The transport has already dropped it.
  virtual void down(LinkId link, const Status& why) = 0;
  // The same, when the peer closed the link because it carried nothing.
  virtual void rested(LinkId link) { down(link, {Code::Failed, "it carried nothing", ""}); }
};

// Memory that other processes on this host can map: the descriptor is of a memfd.
struct Region {
  std::uint64_t id = 0;
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  int fd = -1;
};

enum class Reach : std::uint8_t { No, Staged, Direct };  // Staged: works, with one more copy

// An authenticated connection from the control plane. The transport owns the descriptors after.
struct Connection {
  LinkId link = 0;
  std::vector<int> fds;  // tcp: [socket]; shm, cma: see local_channel.h
  bool dialed = false;   // this side opened it
  std::int32_t pid = 0;  // same host: the peer's process
};

class Transport {
 public:
  // How many bytes a link moves each way before poll() turns to the next one.
  static constexpr std::uint64_t kPollBytes = 1u << 20;

  virtual ~Transport() = default;
  // Whether slices whose source is this memory can go over the link, and how.
  virtual Reach reach(LinkId link, const Pieces& memory) const = 0;
  // Memory that peers may map; bytes == 0 takes the region away.
  virtual Status register_region(const Region& region) = 0;
  virtual Status connect(const Connection& connection) = 0;
  // Queues a frame. Order is kept per link.
  virtual void post(LinkId link, Frame frame) = 0;
  // Sends at once what fits of what was posted; poll() sends the rest. Small frames that were
  // posted together go together.
  virtual void send(LinkId link, Receiver& receiver) = 0;
  // Moves bytes both ways without blocking; true when anything moved.
  virtual bool poll(Receiver& receiver) = 0;
  // After the return nothing is read from or written to memory for this link, by this process.
  virtual void close(LinkId link) = 0;
  // Whether the last poll() left something of the link that had come already.
  virtual bool behind(LinkId) const { return false; }
  // To be asked once, when a link is closed. Empty, or the peer was in the middle of copying what
  // the link had named of our memory: then it says whether it still is. It will not begin again.
  virtual std::function<bool()> peer_copies(LinkId) { return {}; }
};

}  // namespace tent
