// Stage: transport. Which GPUs' memory each RDMA device moves by itself (GPUDirect RDMA): found out
// once for each pair, when it is first of use, by a thread of its own. Until then, and where it
// failed, the bytes go through page-locked host memory.
// Engine lock held; the thread starts with the first trial, and takes no lock but this one's, which
// is taken last. Owned by RdmaMemory. What always holds: a pair works only after a trial in which
// both ways gave the right bytes; after the destructor no trial runs.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/origin.h"
#include "drivers/verbs.h"
#include "transports/rdma/port.h"

namespace tent {

class GpuPairs {
 public:
  struct Pair {
    std::string port;  // of the RDMA device: the name
    Device gpu = kHost;
    bool tried = false;
    std::string why_not;  // "" where it works, once it was tried
  };

  GpuPairs() = default;
  ~GpuPairs();
  GpuPairs(const GpuPairs&) = delete;
  GpuPairs& operator=(const GpuPairs&) = delete;

  void stop();  // no trial runs after it
  // The device of this protection domain, and a port by which it can be tried.
  void learn(const Verbs& verbs, const ibv::Pd* pd, const RdmaPort& port);
  void leave(const ibv::Pd* pd);
  // False as well while it is tried, which begins with the first question.
  bool works(const ibv::Pd* pd, Device gpu);
  // Those whose trial has ended since the last call. Costs nothing when there is none.
  std::vector<Pair> news();
  std::vector<Pair> all() const;

 private:
  using Key = std::pair<std::string, Device>;
  struct Known {
    const Verbs* verbs = nullptr;
    RdmaPort port;
  };
  struct Asked {
    Known device;
    Device gpu = kHost;
  };
  void run();

  std::map<const ibv::Pd*, Known> devices_;
  std::map<Key, Pair> pairs_;
  std::size_t under_way_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Asked> asked_;
  std::deque<Pair> done_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace tent
