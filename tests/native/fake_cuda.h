// Stage: tests. The fake GPUs of fake_cuda.cpp: what its files share. All of it under World's lock.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "drivers/cuda_api.h"
#include "engine/clock.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace tent;

inline constexpr int kDevices = 2;
inline constexpr CudaResult kInvalidValue = 1, kInvalidContext = 201;
enum Way { kInto = 0, kOutOf = 1, kAcross = 2, kWays = 3 };

struct CUctx_st {
  int device = 0, retained = 0;
  TimeNs engine_free[kWays] = {};
  std::atomic<std::uint64_t> copied[kWays] = {};
  std::atomic<TimeNs> first[kWays] = {}, last[kWays] = {};  // when copies began and ended
};

struct CUevent_st {
  std::uint64_t recorded = 0, reached = 0;
};

struct CUstream_st {
  CUstream_st() : worker([this] { run(); }) { worker.detach(); }
  void run();
  bool works() const;
  std::deque<std::function<void()>> queue;
  std::condition_variable wanted;
  bool ended = false, busy = false;
  int capturing = 0;
  std::thread worker;
};

struct CUmod_st {
  std::string code;
};

struct CUfunc_st {
  std::size_t parameters = 0;
};

struct Allocation {
  std::size_t bytes;
  std::uint8_t* shadow;  // where the bytes really are
  int device;
  std::uint64_t number = 0;  // of the driver: never again for another one
  int fd = -1;               // of the memory
  bool shareable = true;     // with other processes
  int opened = 0;            // of another process: so many times
};

struct World {
  std::mutex mutex;
  CUctx_st contexts[kDevices];
  CUstream_st* legacy[kDevices] = {nullptr, nullptr};
  std::vector<CUstream_st*> streams;
  std::map<CudaAddress, Allocation> memory;
  std::map<std::uint64_t, std::size_t> pinned;
  std::size_t pinned_max = SIZE_MAX;
  std::map<std::string, std::pair<int, CudaResult>> failures;  // after so many calls
  std::map<std::string, std::uint64_t> calls;
  double rate[kWays] = {};  // bytes per second; 0: no time
  TimeNs latency = 0, jitter = 0;
  CudaResult poison = 0;               // what every context answers after an access that cannot be
  bool orders = true, flushes = true;  // writes of RDMA devices; whether they can be flushed
  bool dmabuf = true;                  // memory has descriptors
  bool spoils = false;                 // kernels move a wrong byte
  bool peers = true;                   // whether one device can read the other's memory
  int order[kDevices] = {0, 1};        // which real device is seen as which (CUDA_VISIBLE_DEVICES)
  std::uint64_t allocations = 0;
  std::mt19937_64 random{1};
};

World& world();
extern thread_local std::vector<CUctx_st*> current;

CudaResult asked(const char* function);
Allocation* find(CudaAddress address, std::size_t bytes, CudaAddress& base);
CudaResult copy(Way way, std::uint8_t* to, const std::uint8_t* from, std::size_t bytes,
                CudaStream stream);
bool is_pinned(const void* host, std::size_t bytes);
CUstream_st* stream_of(CudaStream stream);
void push(CudaStream stream, std::function<void()> work);
void carry_out(Way way, std::size_t bytes, CUctx_st& context, const std::function<void()>& move);
CudaAddress allocate(int device, std::size_t bytes, bool shareable);
void replace(CudaAddress address);

#define BEGIN(name)                           \
  const std::lock_guard lock(world().mutex);  \
  if (const CudaResult wrong = asked(name)) { \
    return wrong;                             \
  }
