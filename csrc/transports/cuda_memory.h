// Stage: transport. Memory of GPUs between processes of one host: what the owner gives away so that
// another process can open an allocation, and what is open of others. Engine lock held.
// What always holds: an allocation that was freed is never named again, though another one may have
// come to its address (the driver numbers them); what was opened is closed once.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/origin.h"
#include "core/types.h"
#include "drivers/cuda.h"

namespace tent {

// The open context of a device, or null.
using GpuOf = std::function<const Gpu*(Device)>;

struct SharedSpace {         // on the stream: an allocation, before the first piece of it is named
  std::uint64_t number = 0;  // never used again for another one
  std::uint64_t replaces = 0;  // an earlier one that is no more; 0: none
  std::uint64_t gpu = 0;       // Cuda::key()
  std::uint64_t base = 0;      // its address at the owner's
  std::uint64_t bytes = 0;
  CudaIpcName name{};
};
static_assert(sizeof(SharedSpace) == 104);

// Our allocations that peers may open.
class SharedSpaces {
 public:
  explicit SharedSpaces(GpuOf gpu_of) : gpu_of_(std::move(gpu_of)) {}
  // The allocation that the address is in; null: it cannot be shared, and `why` says the reason.
  const SharedSpace* of(std::uint64_t address, std::string& why);
  // Numbers of those that are no more. They are forgotten here.
  std::vector<std::uint64_t> freed();
  bool empty() const { return spaces_.empty(); }

 private:
  struct Entry {
    SharedSpace space;
    std::uint64_t buffer = 0;  // the driver's number of the allocation
  };
  static bool is_still(const Entry& entry);
  std::uint64_t drop_under(std::uint64_t base, std::uint64_t bytes);

  const GpuOf gpu_of_;
  std::map<std::uint64_t, Entry> spaces_;  // by base
  std::uint64_t next_ = 1;
};

// A peer's allocations, as one link knows them.
class OpenedSpaces {
 public:
  explicit OpenedSpaces(GpuOf gpu_of) : gpu_of_(std::move(gpu_of)) {}
  ~OpenedSpaces() { close_all(); }
  OpenedSpaces(const OpenedSpaces&) = delete;
  OpenedSpaces& operator=(const OpenedSpaces&) = delete;

  // `own`: the peer is this process, whose addresses are used as they are.
  void learn(const SharedSpace& space, bool own);
  const SharedSpace* find(std::uint64_t number) const;
  // Where the allocation lies for copies of `device`; 0: it cannot be opened, and `why` says it.
  std::uint64_t open(std::uint64_t number, Device device, std::string& why);
  void forget(std::uint64_t number);
  void close_all();

 private:
  struct Entry {
    SharedSpace space;
    bool own = false;
    std::map<Device, std::uint64_t> opened;
  };
  void close(Entry& entry);

  const GpuOf gpu_of_;
  std::map<std::uint64_t, Entry> spaces_;
};

}  // namespace tent
