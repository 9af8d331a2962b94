// Stage: transport. Shared memory through which one shm link bounces source bytes that lie outside
// all regions: a ring that the sender fills and the peer frees by saying how far it has copied.
// Owned by one link; engine lock held. Made when it is first needed.
// What always holds: positions only grow; the peer's is checked each time it is read.
#pragma once

#include <cstdint>
#include <span>

#include "transports/descriptor.h"

namespace tent {

inline constexpr std::uint64_t kStagingBytes = 2u << 20;
inline constexpr std::uint64_t kStagingSpace = UINT64_MAX;  // as a NamedPiece names it

class StagingWriter {  // the sender's side
 public:
  explicit operator bool() const { return bool(memory_); }
  // Makes the memory; `for_peer` is its descriptor for sending, which cannot be mapped for writing.
  Status open(Descriptor& for_peer);
  // Free bytes in one piece at head(), when the peer has consumed up to `consumed`. False: it
  // cannot have.
  bool room(std::uint64_t consumed, std::uint64_t& bytes);
  std::uint64_t head() const { return head_; }
  // Copies to the head; `bytes` <= room.
  void append(const void* from, std::uint64_t bytes);

 private:
  Mapping memory_;
  std::uint64_t head_ = 0, consumed_ = 0;
};

class StagingReader {  // the peer's side
 public:
  Status open(int memory, std::uint64_t bytes);
  // The bytes that the peer staged there; null where nothing can be.
  const std::uint8_t* find(std::uint64_t position, std::uint64_t bytes) const;
  // What is staged before the end of this piece is free; false where the piece cannot be.
  bool consume(std::uint64_t position, std::uint64_t bytes);
  std::uint64_t consumed() const { return consumed_; }

 private:
  Mapping memory_;
  std::uint64_t consumed_ = 0;
};

}  // namespace tent
