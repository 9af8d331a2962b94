// Stage: device. Copies between host memory and GPUs, or two GPUs, and what is queued on the
// caller's streams: started here, never waited for; poll() says what has been done. Pieces are
// copied with a call of the driver each, or, where they are many and small, all with one launch.
// Engine lock held. What always holds: copies run on streams of our own, which wait for nobody's
// work; whatever was started is reported exactly once, when the GPU no longer touches either side.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "core/origin.h"
#include "core/types.h"
#include "device/rows.h"
#include "drivers/cuda.h"
#include "engine/trace.h"

namespace tent {

using CopyId = std::uint64_t;  // 0: none

class DeviceCopies {
 public:
  struct Counts {                           // of one device
    std::uint64_t calls = 0, launches = 0;  // single copies; launches for many pieces
    std::string why_not;                    // why none is launched; "" where some may be
  };
  struct Ended {
    CopyId id;
    Status status;
  };

  ~DeviceCopies();
  // Pieces below `gather_bytes_max` on average are gathered and scattered by a kernel; 0: none are.
  DeviceCopies(std::uint64_t gather_bytes_max, Trace<TracedCopy>& trace)
      : gather_bytes_max_(gather_bytes_max), trace_(trace) {}
  // Ok, or why the device cannot be used. Opens its context the first time.
  Status open(Device device);
  // After that, and after other page-locked memory was had: makes launches for many pieces
  // possible.
  void open_rows(Device device);
  const Gpu* gpu(Device device) const;
  std::vector<Device> devices() const;  // that are open

  // Host memory to the device's, and back; both sides have equally many bytes, and belong to the
  // GPU until the end is reported.
  CopyId into(Device device, const Pieces& host, const Pieces& gpu);
  CopyId out_of(Device device, const Pieces& gpu, const Pieces& host);
  // From memory that the device can read, its own or another GPU's, to its own. `mapped`: so can a
  // kernel that runs on it.
  CopyId across(Device device, const Pieces& from, const Pieces& to, bool mapped);
  // Returns when the GPU has done this copy; poll() reports it afterwards, as any other.
  void finish(CopyId id);
  // What RDMA devices have written is seen by work that is queued from here on.
  Status settle_writes(Device device) const;
  // Reported when the work that is queued on the stream now has been done; 0: it has been already.
  Status mark(Device device, std::uint64_t stream, CopyId& id);
  Status why_not_after(Device device, std::uint64_t stream);  // as mark() would say
  void poll(std::vector<Ended>& ended);
  std::size_t running() const { return running_; }  // copies, without marks
  // When anything was begun or ended last: what follows soon after is worth spinning for.
  TimeNs touched_at() const { return touched_at_; }
  std::map<Device, Counts> counts() const;

 private:
  static constexpr std::size_t kStreams =
      2;  // each way: one slice's copy overlaps the next's start
  struct Pending {
    CopyId id;
    CudaEvent event;  // null: it could not be recorded
    Status status;    // of starting it
    const char* way;  // of a copy; null: a mark
    Pieces table;     // of a launch
    std::uint64_t bytes;
    TimeNs begun;
  };
  struct Lane {  // what was queued on one stream, in order
    CudaStream stream = nullptr;
    std::deque<Pending> queue;
  };
  struct Used {  // a device that is open
    std::unique_ptr<Gpu> gpu;
    std::unique_ptr<RowsKernel> rows;
    std::uint64_t calls = 0;
    std::array<Lane, kStreams> in, out, across;
    auto lanes() { return std::array{&in, &out, &across}; }
    Lane marks;  // in any order: of streams of others
    std::size_t turn = 0;
    std::vector<CudaEvent> spare;
  };

  static constexpr std::uint64_t kTableBytes = 4u << 20;
  // With fewer pieces a launch and its table are not worth it.
  static constexpr std::uint64_t kPiecesMin = 4;

  template <class Copy>
  CopyId start(Used& used, Lane& lane, const char* way, const Pieces& from, const Pieces& to,
               bool mapped, Copy copy);
  bool gathers(const Used& used, const Pieces& from, const Pieces& to);  // list_ has its rows
  static Status record(Used& used, CudaStream stream, CudaEvent& event);
  bool take_ended(Used& used, Device device, Pending& pending, std::vector<Ended>& ended);

  const std::uint64_t gather_bytes_max_;
  Trace<TracedCopy>& trace_;
  std::map<Device, Used> devices_;
  PinnedArena tables_{kTableBytes, kTableBytes};  // ends after the kernels, before the contexts
  RowList list_;
  CopyId next_ = 1;
  std::size_t running_ = 0;
  TimeNs touched_at_ = 0;
};

}  // namespace tent
