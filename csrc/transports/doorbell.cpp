// Stage: transport. See doorbell.h.
#include "transports/doorbell.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <bit>
#include <new>
#include <string>
#include <system_error>

#include "transports/sealed_memory.h"

namespace tent {

// Shared with every peer on the host, so nothing in here is believed: a wrong bit costs a look at a
// link that has nothing, a wrong flag a system call, or a wake-up that the engine's clock makes up.
struct DoorbellPage {
  alignas(64) std::atomic<std::uint32_t> sleeping;
  alignas(64) std::array<std::atomic<std::uint64_t>, Doorbell::kSlots / 64> ready;
};
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
static_assert(std::atomic<std::uint32_t>::is_always_lock_free);
static_assert(sizeof(DoorbellPage) <= 4096);

namespace {

constexpr std::size_t kPageBytes = 4096;

bool is_eventfd(int fd) {
  char name[64] = {};
  const std::string path = "/proc/self/fd/" + std::to_string(fd);
  return ::readlink(path.c_str(), name, sizeof name - 1) > 0 &&
         std::string(name) == "anon_inode:[eventfd]";
}

}  // namespace

Doorbell::Doorbell(int wait_set)
    : memory_(make_sealed("tent-doorbell", kPageBytes)),
      event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (memory_ && event_) mapping_ = Mapping(memory_.get(), kPageBytes, PROT_READ | PROT_WRITE);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLET;  // each ring is news; nobody has to read the counter
  event.data.fd = event_.get();
  if (!mapping_ || ::epoll_ctl(wait_set, EPOLL_CTL_ADD, event_.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "same-host doorbell");
  }
  page_ = ::new (mapping_.data()) DoorbellPage{};
}

bool Doorbell::prepare_sleep() {
  // Sequentially consistent, as are the peers' accesses in ring(): of "flag, then look at the bits"
  // here and "bit, then look at the flag" there, at least one sees the other.
  page_->sleeping.store(1, std::memory_order_seq_cst);
  if (!any_ready()) return true;
  page_->sleeping.store(0, std::memory_order_relaxed);
  return false;
}

void Doorbell::woke() {
  page_->sleeping.store(0, std::memory_order_relaxed);
  wakes_.fetch_add(1, std::memory_order_relaxed);
}

bool Doorbell::any_ready() const {
  std::uint64_t any = 0;
  for (std::size_t w = 0; w < taken_.size(); ++w) {
    // A bit without a link, from a peer that has not heard of its end, must not keep us awake.
    any |=
        page_->ready[w].load(std::memory_order_seq_cst) & taken_[w].load(std::memory_order_relaxed);
    any |= again_[w].load(std::memory_order_relaxed);
  }
  return any != 0;
}

int Doorbell::take_slot() {
  for (std::size_t w = 0; w < taken_.size(); ++w) {
    const int bit = std::countr_one(taken_[w].load(std::memory_order_relaxed));
    if (bit == 64) continue;
    taken_[w].fetch_or(std::uint64_t(1) << bit, std::memory_order_relaxed);
    return int(w * 64) + bit;
  }
  return -1;
}

void Doorbell::free_slot(int slot) {
  const std::uint64_t bit = std::uint64_t(1) << (slot % 64);
  taken_[std::size_t(slot) / 64].fetch_and(~bit, std::memory_order_relaxed);
  again_[std::size_t(slot) / 64].fetch_and(~bit, std::memory_order_relaxed);
}

bool Doorbell::take_ready(const Slots& mine, Slots& ready) {
  std::uint64_t any = 0;
  for (std::size_t w = 0; w < mine.size(); ++w) {
    ready[w] = 0;
    if (mine[w] == 0) continue;
    if ((page_->ready[w].load(std::memory_order_relaxed) & mine[w]) != 0) {
      // Acquire: what the peer wrote into its ring before it rang is seen. Before the rings are
      // read, so that a bit that is set after this one was cleared is found next time.
      ready[w] = page_->ready[w].fetch_and(~mine[w], std::memory_order_acq_rel) & mine[w];
    }
    if ((again_[w].load(std::memory_order_relaxed) & mine[w]) != 0) {
      ready[w] |= again_[w].fetch_and(~mine[w], std::memory_order_relaxed) & mine[w];
    }
    any |= ready[w];
  }
  return any != 0;
}

void Doorbell::again(int slot) {
  again_[std::size_t(slot) / 64].fetch_or(std::uint64_t(1) << (slot % 64),
                                          std::memory_order_relaxed);
}

Status PeerDoorbell::open(Descriptor page, Descriptor event, std::uint64_t slot,
                          PeerDoorbell& out) {
  if (slot >= Doorbell::kSlots) return failed("the peer named a doorbell slot that does not exist");
  if (!is_eventfd(event.get())) return failed("the peer's doorbell is not an eventfd");
  Mapping mapping;
  Status status = map_sealed(page.get(), kPageBytes, PROT_READ | PROT_WRITE, mapping);
  if (!status.ok()) return status;
  out.mapping_ = std::move(mapping);
  out.event_ = std::move(event);
  out.page_ = reinterpret_cast<DoorbellPage*>(out.mapping_.data());
  out.word_ = std::size_t(slot / 64);
  out.bit_ = std::uint64_t(1) << (slot % 64);
  return {};
}

void PeerDoorbell::ring() {
  page_->ready[word_].fetch_or(bit_, std::memory_order_seq_cst);  // see prepare_sleep()
  if (page_->sleeping.load(std::memory_order_seq_cst) == 0) return;
  if (page_->sleeping.exchange(0, std::memory_order_relaxed) == 0) return;  // another peer does it
  const std::uint64_t one = 1;
  // It can only fail when the counter is full, and then the peer is awake.
  [[maybe_unused]] const auto rang = ::write(event_.get(), &one, sizeof one);
}

}  // namespace tent
