// Stage: transport. See shm.h.
#include "transports/shm.h"

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "transports/staging.h"

namespace tent {
namespace {

// Pieces as small as this cost more to name than to copy: the sender gathers them in staging.
constexpr std::uint64_t kTinyBytes = 128;
constexpr std::size_t kManyPieces = 16;
// The peer copies the first part of a staged slice while the sender bounces the next.
constexpr std::uint64_t kStagedChunkBytes = 256u << 10;

// memcpy is a fifth faster on parts that it still copies with the processor's string instruction
// (below about 1 MiB) than on 64 MiB at once; streaming stores, measured beside it, gain no more.
constexpr std::uint64_t kCopyBytes = 256u << 10;

bool better_gathered(const Pieces& pieces) {
  if (pieces.size() < kManyPieces) return false;
  std::uint64_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.bytes;
  return bytes / pieces.size() < kTinyBytes;
}

class ShmLink final : public LocalLink {
 public:
  explicit ShmLink(const RegionTable& regions) : regions_(regions) {}

  std::uint64_t name(const Pieces& pieces, std::uint64_t& budget,
                     std::vector<NamedPiece>& out) override;
  bool fetch(std::span<const NamedPiece> from, const Pieces& to) override;
  bool release(const NamedPiece& piece) override;
  bool take_parcel(Parcel& parcel) override;
  void forget(std::uint64_t region);

 private:
  std::uint64_t name_next(std::uint64_t address, std::uint64_t bytes, bool gather,
                          std::uint64_t& budget, std::vector<NamedPiece>& out);
  std::uint64_t stage(std::uint64_t address, std::uint64_t bytes, std::uint64_t& budget,
                      std::vector<NamedPiece>& out);
  bool reachable(const OwnRegion& region) const;
  bool announce(const OwnRegion& region);
  bool open_staging();
  const std::uint8_t* locate(const NamedPiece& piece);

  const RegionTable& regions_;
  std::unordered_set<std::uint64_t> announced_;
  StagingWriter staging_out_;
  std::uint64_t staged_ = 0;  // in the chunk that is being named
  PeerRegions peer_regions_;
  StagingReader staging_in_;
};

// ---- the sender's side
// ---------------------------------------------------------------------------

std::uint64_t ShmLink::name(const Pieces& pieces, std::uint64_t& budget,
                            std::vector<NamedPiece>& out) {
  const bool gather = better_gathered(pieces);
  std::uint64_t named = 0;
  staged_ = 0;
  for (const Piece& piece : pieces) {
    for (std::uint64_t done = 0; done < piece.bytes;) {
      const std::uint64_t bytes =
          name_next(piece.address + done, piece.bytes - done, gather, budget, out);
      if (bytes == 0) return named;
      done += bytes;
      named += bytes;
    }
  }
  return named;
}

std::uint64_t ShmLink::name_next(std::uint64_t address, std::uint64_t bytes, bool gather,
                                 std::uint64_t& budget, std::vector<NamedPiece>& out) {
  const OwnRegion* region = gather ? nullptr : regions_.find(address, bytes);
  if (region == nullptr || !reachable(*region)) return stage(address, bytes, budget, out);
  if (out.size() == kChunkPiecesMax || !announce(*region)) return 0;
  out.push_back({region->id, address - region->address, bytes});
  return bytes;
}

std::uint64_t ShmLink::stage(std::uint64_t address, std::uint64_t bytes, std::uint64_t& budget,
                             std::vector<NamedPiece>& out) {
  if (!staging_out_ && !open_staging()) return 0;
  if (parcels_wait) return 0;  // the peer must have the memory before it reads of it
  std::uint64_t room = 0;
  if (!staging_out_.room(channel.staging_consumed(), room)) {
    state.broke("malformed ring: the peer says it has copied what was not staged");
    return 0;
  }
  bytes = std::min({bytes, room, budget, kStagedChunkBytes - staged_});
  if (bytes == 0) return 0;
  const std::uint64_t head = staging_out_.head();
  NamedPiece* last = out.empty() ? nullptr : &out.back();
  if (last != nullptr && last->space == kStagingSpace && last->place + last->bytes == head &&
      head % kStagingBytes != 0) {
    last->bytes += bytes;
  } else {
    if (out.size() == kChunkPiecesMax) return 0;
    out.push_back({kStagingSpace, head, bytes});
  }
  staging_out_.append(reinterpret_cast<const void*>(address), bytes);
  staged_ += bytes;
  budget -= bytes;
  return bytes;
}

bool ShmLink::reachable(const OwnRegion& region) const {
  return announced_.size() < kMappedRegionsMax || announced_.contains(region.id);
}

// True once the peer's socket holds what it needs for this region.
bool ShmLink::announce(const OwnRegion& region) {
  if (announced_.insert(region.id).second) {
    ParcelLabel label;
    label.kind = ParcelKind::Region;
    label.id = region.id;
    label.bytes = region.bytes;
    return send_parcel(label, region.memory.get());
  }
  return !parcels_wait;
}

bool ShmLink::open_staging() {
  Descriptor memory;
  const Status status = staging_out_.open(memory);
  if (!status.ok()) return state.broke(status.text);
  ParcelLabel label;
  label.kind = ParcelKind::Staging;
  label.bytes = kStagingBytes;
  return send_parcel(label, memory.get());
}

void ShmLink::forget(std::uint64_t region) {
  if (announced_.erase(region) == 0) return;
  ParcelLabel label;
  label.kind = ParcelKind::Forget;
  label.id = region;
  send_parcel(label);
}

// ---- the receiver's side
// -------------------------------------------------------------------------

bool ShmLink::fetch(std::span<const NamedPiece> from, const Pieces& to) {
  std::size_t at = 0;           // in `to`
  std::uint64_t to_offset = 0;  // in to[at]
  for (const NamedPiece& piece : from) {
    const std::uint8_t* source = locate(piece);
    if (source == nullptr) return state.broke("malformed slice: the peer's memory is not there");
    for (std::uint64_t left = piece.bytes; left > 0;) {
      const std::uint64_t bytes = std::min({left, to[at].bytes - to_offset, kCopyBytes});
      std::memcpy(reinterpret_cast<void*>(to[at].address + to_offset), source, bytes);
      source += bytes;
      left -= bytes;
      to_offset += bytes;
      if (to_offset == to[at].bytes) {
        ++at;
        to_offset = 0;
      }
    }
  }
  return true;
}

const std::uint8_t* ShmLink::locate(const NamedPiece& piece) {
  const bool staged = piece.space == kStagingSpace;
  const auto find = [&] {
    return staged ? staging_in_.find(piece.place, piece.bytes)
                  : peer_regions_.find(piece.space, piece.place, piece.bytes);
  };
  const std::uint8_t* found = find();
  // The memory was sent before its first mention, but over the socket, which is not looked at
  // before there is need.
  if (found == nullptr && take_parcels()) found = find();
  return found;
}

bool ShmLink::release(const NamedPiece& piece) {
  if (piece.space != kStagingSpace) return true;
  if (!staging_in_.consume(piece.place, piece.bytes)) {
    return state.broke("malformed slice: the peer staged it where it cannot be");
  }
  channel.consume_staging(staging_in_.consumed());
  return true;
}

bool ShmLink::take_parcel(Parcel& parcel) {
  const ParcelLabel& label = parcel.label;
  Status status;
  switch (label.kind) {
    case ParcelKind::Region:
      if (label.id == kStagingSpace || peer_regions_.has(label.id)) return false;
      status = peer_regions_.add(label.id, parcel.fds[0].get(), label.bytes);
      break;
    case ParcelKind::Staging:
      status = staging_in_.open(parcel.fds[0].get(), label.bytes);
      break;
    case ParcelKind::Forget:
      peer_regions_.remove(label.id);
      break;
    default:
      return false;
  }
  return status.ok() || state.broke(status.text);
}

}  // namespace

Reach ShmTransport::reach(LinkId link, const Pieces& memory) const {
  if (links_.find(link) == nullptr) return Reach::No;
  for (const Piece& piece : memory) {
    std::uint64_t bytes = piece.bytes;
    if (regions_.find(piece.address, bytes) == nullptr || bytes < piece.bytes) {
      return Reach::Staged;
    }
  }
  return Reach::Direct;
}

Status ShmTransport::register_region(const Region& region) {
  if (region.bytes > 0) return regions_.add(region);
  if (!regions_.remove(region.id)) return failed("no such region");
  links_.each([this, &region](LocalLink& link) {
    static_cast<ShmLink&>(link).forget(region.id);
    settle(link, false);
  });
  return {};
}

std::unique_ptr<LocalLink> ShmTransport::make_link() { return std::make_unique<ShmLink>(regions_); }

}  // namespace tent
