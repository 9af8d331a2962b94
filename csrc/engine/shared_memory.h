// Stage: engine. Memory that other processes on this host may map and read: tensors in it cross
// without a system call and with one copy. A memfd, never a name in /dev/shm.
// Any thread; takes the engine lock to make it known to the shared-memory transport.
// What always holds: peers can map it as long as it lives, and what they mapped stays readable, so
// freeing it never hurts them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "engine/engine.h"

namespace tent {

class SharedMemory {
 public:
  // At least `bytes`, zeroed, aligned to the huge page when it is as big as one. Throws
  // std::system_error without memory or descriptors, std::runtime_error when it cannot be shared.
  SharedMemory(std::shared_ptr<Engine> engine, std::size_t bytes);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void* address() const { return address_; }
  std::size_t bytes() const { return bytes_; }  // what was asked for

 private:
  void map(int fd);
  void release();

  std::shared_ptr<Engine> engine_;
  const std::size_t bytes_;
  std::size_t mapped_bytes_ = 0;
  void* address_ = nullptr;
  std::uint64_t region_ = 0;
};

}  // namespace tent
