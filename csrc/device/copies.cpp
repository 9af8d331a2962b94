// Stage: device. See copies.h.
#include "device/copies.h"

#include <sched.h>

#include <algorithm>

#include "engine/clock.h"

namespace tent {
namespace {

constexpr const char* kCapturing =
    "the current stream is being captured in a CUDA graph, and a transfer cannot be part of one: "
    "start and wait for transfers outside of the capture";

std::string name_of(const Gpu& gpu) { return "cuda:" + std::to_string(gpu.device()); }

}  // namespace

DeviceCopies::~DeviceCopies() {
  for (auto& [device, used] : devices_) {
    const OnGpu on(*used.gpu);
    const CudaApi& api = used.gpu->api();
    used.rows.reset();
    for (auto* lanes : used.lanes()) {
      for (Lane& lane : *lanes) {
        for (const Pending& pending : lane.queue) api.event_destroy(pending.event);
        if (lane.stream != nullptr) api.stream_destroy(lane.stream);
      }
    }
    for (const Pending& pending : used.marks.queue) api.event_destroy(pending.event);
    for (CudaEvent event : used.spare) api.event_destroy(event);
  }
}

const Gpu* DeviceCopies::gpu(Device device) const {
  const auto found = devices_.find(device);
  return found == devices_.end() ? nullptr : found->second.gpu.get();
}

std::vector<Device> DeviceCopies::devices() const {
  std::vector<Device> open;
  for (const auto& [device, used] : devices_) open.push_back(device);
  return open;
}

Status DeviceCopies::open(Device device) {
  if (devices_.contains(device)) return {};
  const Cuda* cuda = Cuda::loaded();
  if (cuda == nullptr) return {Code::Failed, "the CUDA driver was not opened", ""};
  Status status;
  Used used;
  used.gpu = Gpu::open(*cuda, device, status);
  if (!status.ok()) return status;
  const OnGpu on(*used.gpu);
  const CudaApi& api = used.gpu->api();
  // What is launched here is short, and others wait for it: it goes before kernels that are queued.
  int least = 0, greatest = 0;
  if (api.stream_priorities(&least, &greatest) != kCudaSuccess) greatest = 0;
  for (auto* lanes : used.lanes()) {
    for (Lane& lane : *lanes) {
      if (!status.ok()) break;
      status = cuda->check(api.stream_create(&lane.stream, kCudaStreamNonBlocking, greatest),
                           "making a stream on " + name_of(*used.gpu));
    }
  }
  if (status.ok()) {
    devices_.emplace(device, std::move(used));
    return status;
  }
  for (auto* lanes : used.lanes()) {
    for (Lane& lane : *lanes) {
      if (lane.stream != nullptr) api.stream_destroy(lane.stream);
    }
  }
  return status;
}

Status DeviceCopies::record(Used& used, CudaStream stream, CudaEvent& event) {
  const CudaApi& api = used.gpu->api();
  const Cuda& cuda = used.gpu->cuda();
  event = nullptr;
  if (used.spare.empty()) {
    const Status made = cuda.check(api.event_create(&event, kCudaEventDisableTiming),
                                   "making an event on " + name_of(*used.gpu));
    if (!made.ok()) return made;
  } else {
    event = used.spare.back();
    used.spare.pop_back();
  }
  Status recorded =
      cuda.check(api.event_record(event, stream), "recording an event on " + name_of(*used.gpu));
  if (recorded.ok()) return recorded;
  api.event_destroy(event);
  event = nullptr;
  return recorded;
}

void DeviceCopies::open_rows(Device device) {
  Used& used = devices_.at(device);
  if (gather_bytes_max_ == 0 || used.rows) return;
  const OnGpu on(*used.gpu);
  if (!tables_.open(*used.gpu).ok()) return;  // said by counts()
  used.rows = std::make_unique<RowsKernel>(*used.gpu, tables_);
  used.rows->open(used.out[0].stream);
}

// Many small pieces are worth a launch; large ones the copy engines move as quickly, and leave the
// multiprocessors to others.
bool DeviceCopies::gathers(const Used& used, const Pieces& from, const Pieces& to) {
  const std::size_t pieces = std::max(from.size(), to.size());
  if (!used.rows || pieces < kPiecesMin || !used.rows->ready()) return false;
  list_.fill(from, to);
  return list_.aligned() && list_.bytes() / pieces < gather_bytes_max_;
}

template <class Copy>
CopyId DeviceCopies::start(Used& used, Lane& lane, const char* way, const Pieces& from,
                           const Pieces& to, bool mapped, Copy copy) {
  const OnGpu on(*used.gpu);
  Pending pending{next_++, nullptr, {}, way, {}, 0, 0};
  for (const Piece& piece : to) pending.bytes += piece.bytes;
  pending.begun = touched_at_ = now_ns();
  const bool gathered = mapped && gathers(used, from, to) &&
                        used.rows->launch(lane.stream, list_.rows(), pending.table, pending.status);
  if (!gathered && pending.status.ok()) {
    each_piece(from, to, [&](std::uint64_t source, std::uint64_t target, std::uint64_t bytes) {
      if (!pending.status.ok()) return;
      pending.status = used.gpu->cuda().check(copy(source, target, bytes, lane.stream),
                                              "a copy of " + name_of(*used.gpu));
      ++used.calls;
    });
  }
  // What was queued before a failure still runs: its end is waited for all the same.
  const Status recorded = record(used, lane.stream, pending.event);
  if (!recorded.ok()) {
    // Nobody could say when it ends: this one wait may take as long as the copy does.
    used.gpu->api().stream_synchronize(lane.stream);
    if (pending.status.ok()) pending.status = recorded;
  }
  lane.queue.push_back(std::move(pending));
  ++running_;
  return lane.queue.back().id;
}

CopyId DeviceCopies::into(Device device, const Pieces& host, const Pieces& gpu) {
  Used& used = devices_.at(device);
  const CudaApi& api = used.gpu->api();
  return start(used, used.in[used.turn++ % kStreams], "in", host, gpu, true,
               [&](std::uint64_t from, std::uint64_t to, std::uint64_t bytes, CudaStream stream) {
                 return api.copy_in(to, reinterpret_cast<const void*>(from), bytes, stream);
               });
}

CopyId DeviceCopies::out_of(Device device, const Pieces& gpu, const Pieces& host) {
  Used& used = devices_.at(device);
  const CudaApi& api = used.gpu->api();
  return start(used, used.out[used.turn++ % kStreams], "out", gpu, host, true,
               [&](std::uint64_t from, std::uint64_t to, std::uint64_t bytes, CudaStream stream) {
                 return api.copy_out(reinterpret_cast<void*>(to), from, bytes, stream);
               });
}

CopyId DeviceCopies::across(Device device, const Pieces& from, const Pieces& to, bool mapped) {
  Used& used = devices_.at(device);
  const CudaApi& api = used.gpu->api();
  return start(used, used.across[used.turn++ % kStreams], "across", from, to, mapped,
               [&](std::uint64_t at, std::uint64_t into, std::uint64_t bytes, CudaStream stream) {
                 return api.copy_across(into, at, bytes, stream);
               });
}

std::map<Device, DeviceCopies::Counts> DeviceCopies::counts() const {
  std::map<Device, Counts> all;
  for (const auto& [device, used] : devices_) {
    Counts& found = all[device];
    found.calls = used.calls;
    if (gather_bytes_max_ == 0) {
      found.why_not = "gpu_gather_bytes_max is 0";
    } else if (!used.rows) {
      found.why_not = tables_.why();
    } else {
      found.launches = used.rows->launches();
      found.why_not = used.rows->why_not();
    }
  }
  return all;
}

void DeviceCopies::finish(CopyId id) {
  for (auto& [device, used] : devices_) {
    const OnGpu on(*used.gpu);
    for (auto* lanes : used.lanes()) {
      for (const Lane& lane : *lanes) {
        for (const Pending& pending : lane.queue) {
          if (pending.id != id || pending.event == nullptr) continue;
          while (used.gpu->api().event_query(pending.event) == kCudaNotReady) sched_yield();
          return;
        }
      }
    }
  }
}

Status DeviceCopies::why_not_after(Device device, std::uint64_t stream) {
  Used& used = devices_.at(device);
  const OnGpu on(*used.gpu);
  int capturing = kCudaCaptureNone;
  const CudaResult asked =
      used.gpu->api().stream_capturing(reinterpret_cast<CudaStream>(stream), &capturing);
  if (asked == kCudaCaptureImplicit || (asked == kCudaSuccess && capturing != kCudaCaptureNone)) {
    return {Code::Failed, kCapturing, ""};
  }
  return used.gpu->cuda().check(asked, "looking at the current stream");
}

Status DeviceCopies::settle_writes(Device device) const {
  const Gpu& gpu = *devices_.at(device).gpu;
  const OnGpu on(gpu);
  return gpu.settle_writes();
}

Status DeviceCopies::mark(Device device, std::uint64_t stream, CopyId& id) {
  Used& used = devices_.at(device);
  const OnGpu on(*used.gpu);
  const CudaApi& api = used.gpu->api();
  const auto queue = reinterpret_cast<CudaStream>(stream);
  id = 0;
  Status status = why_not_after(device, stream);
  if (!status.ok() || api.stream_query(queue) == kCudaSuccess) return status;
  CudaEvent event = nullptr;
  status = record(used, queue, event);
  if (!status.ok()) return status;
  id = next_++;
  used.marks.queue.push_back({id, event, {}, nullptr, {}, 0, 0});
  touched_at_ = now_ns();
  return status;
}

// False: the GPU is not done with it.
bool DeviceCopies::take_ended(Used& used, Device device, Pending& pending,
                              std::vector<Ended>& ended) {
  const CudaApi& api = used.gpu->api();
  if (pending.event != nullptr) {
    const CudaResult result = api.event_query(pending.event);
    if (result == kCudaNotReady) return false;
    if (pending.status.ok()) {
      pending.status = used.gpu->cuda().check(result, "work on " + name_of(*used.gpu));
    }
    used.spare.push_back(pending.event);
  }
  tables_.give(pending.table);
  ended.push_back({pending.id, std::move(pending.status)});
  touched_at_ = now_ns();
  if (pending.way == nullptr) return true;
  --running_;
  if (trace_.on()) {
    trace_.add({device, pending.way, pending.bytes, pending.begun, touched_at_});
  }
  return true;
}

void DeviceCopies::poll(std::vector<Ended>& ended) {
  for (auto& [device, used] : devices_) {
    bool idle = used.marks.queue.empty();
    for (auto* lanes : used.lanes()) {
      idle &= std::all_of(lanes->begin(), lanes->end(),
                          [](const Lane& lane) { return lane.queue.empty(); });
    }
    if (idle) continue;
    const OnGpu on(*used.gpu);
    for (auto* lanes : used.lanes()) {
      for (Lane& lane : *lanes) {
        while (!lane.queue.empty() && take_ended(used, device, lane.queue.front(), ended)) {
          lane.queue.pop_front();
        }
      }
    }
    auto& marks = used.marks.queue;
    std::erase_if(marks, [&](Pending& mark) { return take_ended(used, device, mark, ended); });
  }
}

}  // namespace tent
