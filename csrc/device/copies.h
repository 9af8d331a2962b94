// Stage: device. Copies between host memory and GPUs, or two GPUs, and what is queued on the
// caller's streams: started here, never waited for; poll() says what has been done. Engine lock
// held. What always holds: copies run on streams of our own, which wait for nobody's work; whatever
// was started is reported exactly once, when the GPU no longer touches either side.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "core/origin.h"
#include "core/types.h"
#include "drivers/cuda.h"

namespace tent {

using CopyId = std::uint64_t;  // 0: none

class DeviceCopies {
 public:
  struct Ended {
    CopyId id;
    Status status;
  };

  ~DeviceCopies();
  // Ok, or why the device cannot be used. Opens its context the first time.
  Status open(Device device);
  const Gpu* gpu(Device device) const;
  std::vector<Device> devices() const;  // that are open

  // Host memory to the device's, and back; both sides have equally many bytes, and belong to the
  // GPU until the end is reported.
  CopyId into(Device device, const Pieces& host, const Pieces& gpu);
  CopyId out_of(Device device, const Pieces& gpu, const Pieces& host);
  // From memory that the device can read, its own or another GPU's, to its own.
  CopyId across(Device device, const Pieces& from, const Pieces& to);
  // Returns when the GPU has done this copy; poll() reports it afterwards, as any other.
  void finish(CopyId id);
  // Reported when the work that is queued on the stream now has been done; 0: it has been already.
  Status mark(Device device, std::uint64_t stream, CopyId& id);
  Status why_not_after(Device device, std::uint64_t stream);  // as mark() would say
  void poll(std::vector<Ended>& ended);
  std::size_t running() const { return running_; }  // copies, without marks

 private:
  static constexpr std::size_t kStreams =
      2;  // each way: one slice's copy overlaps the next's start
  struct Pending {
    CopyId id;
    CudaEvent event;  // null: it could not be recorded
    Status status;    // of starting it
    bool copy;
  };
  struct Lane {  // what was queued on one stream, in order
    CudaStream stream = nullptr;
    std::deque<Pending> queue;
  };
  struct Used {  // a device that is open
    std::unique_ptr<Gpu> gpu;
    std::array<Lane, kStreams> in, out, across;
    auto lanes() { return std::array{&in, &out, &across}; }
    Lane marks;  // in any order: of streams of others
    std::size_t turn = 0;
    std::vector<CudaEvent> spare;
  };

  template <class Copy>
  CopyId start(Used& used, Lane& lane, const Pieces& host, const Pieces& gpu, Copy copy);
  static Status record(Used& used, CudaStream stream, CudaEvent& event);
  bool take_ended(Used& used, Pending& pending, std::vector<Ended>& ended);

  std::map<Device, Used> devices_;
  CopyId next_ = 1;
  std::size_t running_ = 0;
};

}  // namespace tent
