// Stage: transport. See local_channel.h.
#include "transports/local_channel.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "transports/sealed_memory.h"

namespace tent {

// A line of the cache for each writer, so that the two sides do not take lines from each other.
struct RingHeader {
  alignas(64) std::atomic<std::uint64_t> written;  // by the writer
  alignas(64) std::atomic<std::uint64_t> read;     // by the reader
  std::atomic<std::uint64_t> staging_consumed;     // by the reader
  std::atomic<std::uint32_t> fetching;             // by the reader
  alignas(
      64) std::atomic<std::uint32_t> waits_for_room;  // set by the writer, cleared by the reader
  std::atomic<std::uint32_t> withdrawn;               // by the writer
};
static_assert(sizeof(RingHeader) == 192);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

namespace {

constexpr std::size_t kHeadersBytes = 4096;
constexpr std::size_t kChannelBytes = kHeadersBytes + 2 * LocalChannel::kRingBytes;
static_assert(2 * sizeof(RingHeader) <= kHeadersBytes);
static_assert((LocalChannel::kRingBytes & (LocalChannel::kRingBytes - 1)) == 0);

void copy_in(std::uint8_t* ring, std::uint64_t position, const void* from, std::size_t bytes) {
  const std::size_t at = std::size_t(position % LocalChannel::kRingBytes);
  const std::size_t first = std::min<std::size_t>(bytes, LocalChannel::kRingBytes - at);
  std::memcpy(ring + at, from, first);
  if (first < bytes) {
    std::memcpy(ring, static_cast<const std::uint8_t*>(from) + first, bytes - first);
  }
}

void copy_out(const std::uint8_t* ring, std::uint64_t position, void* to, std::size_t bytes) {
  const std::size_t at = std::size_t(position % LocalChannel::kRingBytes);
  const std::size_t first = std::min<std::size_t>(bytes, LocalChannel::kRingBytes - at);
  std::memcpy(to, ring + at, first);
  if (first < bytes) std::memcpy(static_cast<std::uint8_t*>(to) + first, ring, bytes - first);
}

}  // namespace

Status open_local_channel(std::vector<int>& ours, std::vector<int>& theirs) {
  Descriptor memory = make_sealed("tent-channel", kChannelBytes);
  if (!memory) return failed(errno_text("no memory for a same-host channel"));
  Descriptor copy(::fcntl(memory.get(), F_DUPFD_CLOEXEC, 0));
  if (!copy) return failed(errno_text("no descriptor for a same-host channel"));
  ours.push_back(memory.release());
  theirs.push_back(copy.release());
  return {};
}

Status LocalChannel::open(int memory, bool dialed) {
  memory_ = std::make_shared<Mapping>();
  Status status = map_sealed(memory, kChannelBytes, PROT_READ | PROT_WRITE, *memory_);
  if (!status.ok()) return status;
  // A memfd is made of zeros, and so are the headers before anything was sent.
  auto* headers = reinterpret_cast<RingHeader*>(memory_->data());
  std::uint8_t* bytes = memory_->data() + kHeadersBytes;
  out_ = &headers[dialed ? 0 : 1];
  in_ = &headers[dialed ? 1 : 0];
  out_bytes_ = bytes + (dialed ? 0 : kRingBytes);
  in_bytes_ = bytes + (dialed ? kRingBytes : 0);
  return {};
}

std::ptrdiff_t LocalChannel::write_some(const iovec* parts, int count) {
  std::uint64_t wanted = 0;
  for (int i = 0; i < count; ++i) wanted += parts[i].iov_len;
  if (room_end_ - written_ < wanted) {
    // Acquire: the peer has copied out what it says it has read, before we write over it.
    const std::uint64_t read = out_->read.load(std::memory_order_acquire);
    if (written_ - read > kRingBytes || read + kRingBytes < room_end_) {
      link_.broke("malformed ring: the peer says it has read what was not sent");
      return -1;
    }
    room_end_ = read + kRingBytes;
  }
  std::uint64_t left = std::min(wanted, room_end_ - written_);
  const std::uint64_t before = written_;
  for (int i = 0; i < count && left > 0; ++i) {
    const std::size_t bytes = std::min<std::uint64_t>(parts[i].iov_len, left);
    copy_in(out_bytes_, written_, parts[i].iov_base, bytes);
    written_ += bytes;
    left -= bytes;
  }
  if (written_ == before) return 0;
  // Release: the bytes are there before the position says so.
  out_->written.store(written_, std::memory_order_release);
  wrote_ = true;
  return std::ptrdiff_t(written_ - before);
}

std::ptrdiff_t LocalChannel::read_some(const iovec* parts, int count) {
  // Acquire: the bytes below this position are the peer's.
  const std::uint64_t written = in_->written.load(std::memory_order_acquire);
  std::uint64_t left = written - read_;
  if (left > kRingBytes) {
    link_.broke("malformed ring: the peer says it has sent more than the ring holds");
    return -1;
  }
  const std::uint64_t before = read_;
  for (int i = 0; i < count && left > 0; ++i) {
    const std::size_t bytes = std::min<std::uint64_t>(parts[i].iov_len, left);
    copy_out(in_bytes_, read_, parts[i].iov_base, bytes);
    read_ += bytes;
    left -= bytes;
  }
  if (read_ == before) return 0;
  // Release: we are done with the bytes before the peer may write over them.
  in_->read.store(read_, std::memory_order_release);
  consumed_ = true;
  return std::ptrdiff_t(read_ - before);
}

bool LocalChannel::take_news() {
  bool news = wrote_;
  wrote_ = false;
  if (consumed_) {
    consumed_ = false;
    // "Room made, then look at the flag" here, "flag set, then look for room" in wait_for_room():
    // with a full fence between the two on each side, at least one sees the other.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (in_->waits_for_room.load(std::memory_order_relaxed) != 0) {
      in_->waits_for_room.store(0, std::memory_order_relaxed);
      news = true;
    }
  }
  return news;
}

bool LocalChannel::wait_for_room() {
  out_->waits_for_room.store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // see take_news()
  return out_->read.load(std::memory_order_relaxed) + kRingBytes == room_end_ &&
         out_->staging_consumed.load(std::memory_order_relaxed) == staging_seen_;
}

std::uint64_t LocalChannel::staging_consumed() const {
  // Acquire: the peer has copied what it says it has consumed, before we write over it.
  staging_seen_ = out_->staging_consumed.load(std::memory_order_acquire);
  return staging_seen_;
}

void LocalChannel::consume_staging(std::uint64_t position) {
  // Release: we are done with the bytes before the peer may write over them.
  in_->staging_consumed.store(position, std::memory_order_release);
  consumed_ = true;
}

// "Say that I fetch, then look whether I may" here, "say that nobody may, then look whether
// somebody does" in withdraw(): with a full fence between the two on each side, at least one sees
// the other.
bool LocalChannel::begin_fetch() {
  in_->fetching.store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (in_->withdrawn.load(std::memory_order_relaxed) == 0) return true;
  return end_fetch();
}

bool LocalChannel::may_fetch() const {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return in_->withdrawn.load(std::memory_order_relaxed) == 0;
}

bool LocalChannel::end_fetch() {
  // Acquire fence: who copied what the writer put there after it withdrew sees that it did.
  std::atomic_thread_fence(std::memory_order_acquire);
  const bool valid = in_->withdrawn.load(std::memory_order_relaxed) == 0;
  // Release: what was copied is copied before the writer may change it.
  in_->fetching.store(0, std::memory_order_release);
  return valid;
}

LocalChannel::Withdrawal LocalChannel::withdraw() {
  out_->withdrawn.store(1, std::memory_order_relaxed);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  return {memory_, out_};
}

bool LocalChannel::Withdrawal::fetching() const {
  return ring_->fetching.load(std::memory_order_acquire) != 0;
}

}  // namespace tent
