// Stage: transport. See staging.h.
#include "transports/staging.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "transports/sealed_memory.h"

namespace tent {

Status StagingWriter::open(Descriptor& for_peer) {
  Descriptor memory = make_sealed("tent-staging", kStagingBytes);
  Mapping mapping;
  if (memory) mapping = Mapping(memory.get(), kStagingBytes, PROT_READ | PROT_WRITE);
  if (!mapping) return failed(errno_text("no shared memory to bounce slices through"));
  const Status sealed = seal_region(memory.get());
  if (!sealed.ok()) return sealed;
  for_peer = reopen_read_only(memory.get());
  if (!for_peer) return failed(errno_text("the staging memory cannot be passed on"));
  memory_ = std::move(mapping);
  return {};
}

bool StagingWriter::room(std::uint64_t consumed, std::uint64_t& bytes) {
  if (consumed < consumed_ || consumed > head_) return false;
  consumed_ = consumed;
  const std::uint64_t to_end = kStagingBytes - head_ % kStagingBytes;
  bytes = std::min(kStagingBytes - (head_ - consumed_), to_end);
  return true;
}

void StagingWriter::append(const void* from, std::uint64_t bytes) {
  std::memcpy(memory_.data() + head_ % kStagingBytes, from, bytes);
  head_ += bytes;
}

Status StagingReader::open(int memory, std::uint64_t bytes) {
  if (bytes != kStagingBytes || memory_) return failed("malformed staging memory from the peer");
  return map_sealed(memory, bytes, PROT_READ, memory_);
}

const std::uint8_t* StagingReader::find(std::uint64_t position, std::uint64_t bytes) const {
  if (!memory_ || position < consumed_ || position - consumed_ > kStagingBytes) return nullptr;
  const std::uint64_t at = position % kStagingBytes;
  return bytes <= kStagingBytes - at ? memory_.data() + at : nullptr;
}

bool StagingReader::consume(std::uint64_t position, std::uint64_t bytes) {
  if (position < consumed_ || position - consumed_ > kStagingBytes || bytes > kStagingBytes) {
    return false;
  }
  consumed_ = position + bytes;
  return true;
}

}  // namespace tent
