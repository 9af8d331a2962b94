// Stage: transport. See memory.h.
#include "transports/rdma/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <cerrno>

#include "transports/descriptor.h"
#include "transports/rdma/gpu_memory.h"

namespace tent {
namespace {

constexpr int kLookBack = 256;  // ranges looked at, backwards, for one that covers an address

}  // namespace

RdmaMemory::Range* RdmaMemory::around(std::uint64_t begin, std::uint64_t end) {
  auto at = ranges_.upper_bound(begin);
  for (int looked = 0; at != ranges_.begin() && looked < kLookBack; ++looked) {
    --at;
    if (at->second->end >= end) return at->second.get();
  }
  return nullptr;
}

bool RdmaMemory::covers(std::uint64_t address, std::uint64_t bytes) {
  return around(address, address + bytes) != nullptr;
}

bool RdmaMemory::is_gpu(std::uint64_t address) {
  const Range* range = around(address, address + 1);
  return range != nullptr && range->device != kHost;
}

RdmaMemory::Range* RdmaMemory::add(const Piece& memory) {
  auto made = std::make_unique<Range>();
  made->begin = memory.address;
  made->end = memory.address + memory.bytes;
  return ranges_.emplace(memory.address, std::move(made))->second.get();
}

void RdmaMemory::hold(const MemoryOwner& owner, const Pieces& ranges, Device device) {
  if (!wanted) return;
  std::vector<Range*>& held = owners_[owner];
  for (const Piece& piece : ranges) {
    if (piece.bytes == 0) continue;
    if (owner.kind != MemoryOwner::Kind::Transfer) give_up_kept(piece);
    // Part of a range that is held already: its registration serves this owner as well.
    Range* range = around(piece.address, piece.address + piece.bytes);
    if (range == nullptr) {
      range = add(piece);
      range->device = device;
    }
    ++range->owners;
    if (range->storage != 0) kept_.splice(kept_.end(), kept_, range->kept);
    held.push_back(range);
  }
}

void RdmaMemory::drop(const MemoryOwner& owner) {
  const auto found = owners_.find(owner);
  if (found == owners_.end()) return;
  const std::vector<Range*> held = std::move(found->second);
  owners_.erase(found);
  collect();
  for (Range* range : held) let_go(*range, owner);
  if (owner.kind == MemoryOwner::Kind::Transfer) shed(kept_bytes_max, kKeptMax);
}

void RdmaMemory::let_go(Range& range, const MemoryOwner& owner) {
  if (owner.kind == MemoryOwner::Kind::Storage) unlist(range);
  if (--range.owners != 0) {
    // What was refused may be possible for the next transfer.
    if (range.owners == 1 && range.storage != 0) {
      std::erase_if(range.pieces, [](const auto& entry) { return entry.second.mr == nullptr; });
    }
    return;
  }
  if (range.asked_ahead) registrar_.withdraw(&range);
  for (auto& [key, registered] : range.pieces) dismiss(range, registered);
  auto [at, end] = ranges_.equal_range(range.begin);
  at = std::find_if(at, end, [&](const auto& entry) { return entry.second.get() == &range; });
  ranges_.erase(at);
}

bool RdmaMemory::find(const Verbs& verbs, ibv::Pd* pd, RdmaUse use, std::uint64_t address,
                      RdmaKey& out) {
  for (const Latest& latest : latest_) {
    if (latest.pd == pd && latest.use == use && latest.begin <= address && address < latest.end) {
      out = {latest.lkey, latest.rkey, latest.end};
      return true;
    }
  }
  Range* range = around(address, address + 1);
  if (range == nullptr || (range->device != kHost && !gpus.works(pd, range->device))) return false;
  const std::uint64_t number = (address - range->begin) / kPieceBytes;
  auto known = range->pieces.find({{pd, use}, number});
  if (known == range->pieces.end() && range->asked_ahead) {
    registrar_.hurry(wish(pd, use, *range, number));
    collect();
    known = range->pieces.find({{pd, use}, number});
  }
  const Registered& found =
      known != range->pieces.end() ? known->second : enroll(verbs, pd, use, *range, number);
  if (found.mr == nullptr) return false;
  look_ahead(verbs, pd, use, *range, number);
  out = {found.mr->lkey, found.mr->rkey, found.end};
  latest_[next_latest_++ % std::size(latest_)] = {pd,        use,      found.begin,
                                                  found.end, out.lkey, out.rkey};
  return true;
}

RdmaMemory::Registered& RdmaMemory::enroll(const Verbs& verbs, ibv::Pd* pd, RdmaUse use,
                                           Range& range, std::uint64_t number) {
  Registered& made = range.pieces[{{pd, use}, number}];
  made.begin = range.begin + number * kPieceBytes;
  made.end = std::min(range.end, made.begin + kPieceBytes);
  made.dereg = verbs.dereg_mr;
  const int rights = rights_of(use);
  const std::uint64_t bytes = made.end - made.begin;
  ++range.owners;  // while others are given up for it
  errno = 0;
  made.mr = register_memory(verbs, pd, made.begin, made.end, rights, range.device);
  if (made.mr == nullptr && !kept_.empty()) {
    const int error = errno;
    shed(0, 0);
    errno = error;
    made.mr = register_memory(verbs, pd, made.begin, made.end, rights, range.device);
  }
  if (made.mr == nullptr) {
    refused(errno, bytes);
  } else {
    count(range, bytes);
    shed(kept_bytes_max, kKeptMax);
  }
  --range.owners;
  return made;
}

void RdmaMemory::count(Range& range, std::uint64_t bytes) {
  ++registrations_;
  registered_bytes_ += bytes;
  range.registered_bytes += bytes;
  if (range.storage != 0) kept_bytes_ += bytes;
}

void RdmaMemory::dismiss(Range& range, Registered& registered) {
  if (registered.mr == nullptr) return;
  for (Latest& latest : latest_) {
    if (latest.begin == registered.begin && latest.end == registered.end) latest = {};
  }
  registered.dereg(registered.mr);
  registered.mr = nullptr;
  const std::uint64_t bytes = registered.end - registered.begin;
  registered_bytes_ -= bytes;
  range.registered_bytes -= bytes;
  if (range.storage != 0) kept_bytes_ -= bytes;
}

void RdmaMemory::leave(const ibv::Pd* pd) {
  registrar_.withdraw_from(pd);
  gpus.leave(pd);
  for (auto& [begin, range] : ranges_) {
    for (auto at = range->pieces.begin(); at != range->pieces.end();) {
      const bool gone = at->first.first.first == pd;
      if (gone) dismiss(*range, at->second);
      at = gone ? range->pieces.erase(at) : std::next(at);
    }
  }
}

void RdmaMemory::refused(int error, std::uint64_t bytes) {
  if (std::exchange(complained_, true)) return;
  complaint_ = registration_refused(error, bytes) + "; such memory is copied instead";
  if (registered_bytes_ != 0) {
    complaint_ += " (" + std::to_string(registered_bytes_ >> 10) + " KiB are registered)";
  }
}

std::string registration_refused(int error, std::uint64_t bytes) {
  errno = error;
  std::string text =
      errno_text("memory of " + std::to_string(bytes) + " bytes cannot be registered for RDMA");
  if (error != ENOMEM && error != EAGAIN && error != EPERM) return text;
  rlimit limit{};
  const bool limited = ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
  if (limited) {
    text += "; this process may lock " + std::to_string(limit.rlim_cur >> 10) + " KiB of memory";
  }
  return text +
         "; allow locked memory: `ulimit -l unlimited`, LimitMEMLOCK=infinity for a service, "
         "--ulimit memlock=-1 for a container";
}

}  // namespace tent
