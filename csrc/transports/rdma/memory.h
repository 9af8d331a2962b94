// Stage: transport. The memory that RDMA devices may touch: which ranges live long enough to be
// registered, and the registrations made of them, in pieces, when they are first needed or shortly
// before (memory_ahead.cpp, on the registrar's thread).
// Engine lock held; the registrar's own lock is taken under it. Owned by RdmaTransport.
// What always holds: a range can be registered only while an owner (a running transfer, an open
// segment, a region, a storage) holds it, and the last owner's end drops what was registered of it:
// a freed page is never named to a device. What may be read by peers may not be written by the
// device, and the other way round; nothing can be written by peers at all.
//
// A storage is memory of which somebody knows the end: keep() lets what is registered of it outlive
// the transfers that used it, until forget(). Why no stale registration is ever used: keep() is
// called only for memory whose own deleter calls forget() (csrc/c10d/storages.h), and forget()
// returns before that deleter gives the memory back to the allocator. So as long as a range is kept
// here its addresses belong to that very piece of memory, however it comes to its end: the storage
// freed, resized, or moved into shared memory. Where nobody knows the end, nothing is kept.
// It is bounded: beyond `kept_bytes_max` registered bytes, or kKeptMax storages, the least recently
// used that no transfer uses goes first; all such go at once when the device has no room for
// another. A segment's end takes all rights back, so what is kept gives way to a segment, and
// nothing is kept of memory that others hold already.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/types.h"
#include "drivers/verbs.h"
#include "transports/rdma/gpu_pairs.h"
#include "transports/rdma/registrar.h"

namespace tent {

// Who keeps memory in place: a transfer by its id, the others by their number.
struct MemoryOwner {
  enum class Kind : std::uint8_t { Transfer, Segment, Region, Storage, Pinned };
  Kind kind = Kind::Transfer;
  std::uint64_t id = 0;
  auto operator<=>(const MemoryOwner&) const = default;
};

struct RdmaKey {
  std::uint32_t lkey = 0, rkey = 0;
  std::uint64_t end = 0;  // the first address that it does not cover
};

// Why a device did not register so many bytes, and what to do.
std::string registration_refused(int error, std::uint64_t bytes);

class RdmaMemory {
 public:
  // A large range is registered in pieces of this size: none of them holds up the engine for long.
  static constexpr std::uint64_t kPieceBytes = 32u << 20;
  // With the piece that a transfer has come to, so many behind it are begun in the background.
  static constexpr std::uint64_t kPiecesAhead = 4;

  static constexpr std::size_t kKeptMax = 1024;

  GpuPairs gpus;       // which devices move the memory of which GPUs
  bool wanted = true;  // no: RDMA will not be used, and nothing is remembered
  std::uint64_t kept_bytes_max = 0;

  // `device`: whose memory it is. A GPU's is found only where `gpus` says that it works.
  void hold(const MemoryOwner& owner, const Pieces& ranges, Device device = kHost);
  void drop(const MemoryOwner& owner);
  // All of a storage's memory; again before each use, because it may have had to go meanwhile.
  void keep(std::uint64_t storage, const Piece& memory);
  void forget(std::uint64_t storage) { drop({MemoryOwner::Kind::Storage, storage}); }
  void keep_nothing();  // from now on
  // The keys for `address` with this protection domain. False: nobody holds it, or the device
  // refuses it.
  bool find(const Verbs& verbs, ibv::Pd* pd, RdmaUse use, std::uint64_t address, RdmaKey& out);
  bool covers(std::uint64_t address, std::uint64_t bytes);  // somebody holds all of it
  bool is_gpu(std::uint64_t address);                       // held, and no processor may touch it
  // Forgets what was registered with a device that goes away.
  void leave(const ibv::Pd* pd);
  // Why the last registration was refused; "" when none was, or it was asked for already.
  bool complains() const { return !complaint_.empty(); }
  std::string take_complaint() { return std::exchange(complaint_, {}); }

  std::uint64_t registered_bytes() const { return registered_bytes_; }
  std::uint64_t registrations() const { return registrations_; }  // made, ever

 private:
  struct Registered {
    ibv::Mr* mr = nullptr;  // null: the device refused
    int (*dereg)(ibv::Mr*) = nullptr;
    std::uint64_t begin = 0, end = 0;
  };
  struct Range {
    std::uint64_t begin = 0, end = 0;
    Device device = kHost;
    std::uint32_t owners = 0;
    std::uint64_t registered_bytes = 0;
    bool asked_ahead = false, refused_ahead = false;
    std::uint64_t storage = 0;  // one of the owners; 0: it is none
    std::list<Range*>::iterator kept;
    // By protection domain, use and number of the piece.
    std::map<std::pair<std::pair<ibv::Pd*, RdmaUse>, std::uint64_t>, Registered> pieces;
  };
  using Ranges = std::multimap<std::uint64_t, std::unique_ptr<Range>>;  // by begin

  Range* around(std::uint64_t begin, std::uint64_t end);
  Range* add(const Piece& memory);
  Registered& enroll(const Verbs& verbs, ibv::Pd* pd, RdmaUse use, Range& range,
                     std::uint64_t number);
  static RdmaWish wish(ibv::Pd* pd, RdmaUse use, const Range& range, std::uint64_t number);
  void look_ahead(const Verbs& verbs, ibv::Pd* pd, RdmaUse use, Range& range, std::uint64_t number);
  void collect();  // what the registrar has done
  void count(Range& range, std::uint64_t bytes);
  void dismiss(Range& range, Registered& registered);
  void let_go(Range& range, const MemoryOwner& owner);
  void unlist(Range& range);
  bool is_held(const Piece& memory);                  // any of it
  void give_up_kept(const Piece& memory);             // ... that is kept
  void shed(std::uint64_t bytes, std::size_t count);  // until no more is kept than this
  void refused(int error, std::uint64_t bytes);

  Registrar registrar_;
  Ranges ranges_;
  std::map<MemoryOwner, std::vector<Range*>> owners_;
  std::list<Range*> kept_;        // of storages, the least recently used first
  std::uint64_t kept_bytes_ = 0;  // registered of them
  std::string complaint_;
  bool complained_ = false;
  std::uint64_t registered_bytes_ = 0, registrations_ = 0;
  struct Latest {  // the last answers: slices of one transfer ask for the same again and again
    ibv::Pd* pd = nullptr;
    RdmaUse use = RdmaUse::Source;
    std::uint64_t begin = 0, end = 0;
    std::uint32_t lkey = 0, rkey = 0;
  };
  Latest latest_[4];
  unsigned next_latest_ = 0;
};

}  // namespace tent
