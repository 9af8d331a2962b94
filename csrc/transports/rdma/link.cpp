// Stage: transport. See link.h; link_setup.cpp has its beginning and its end.
#include "transports/rdma/link.h"

#include <algorithm>
#include <cstring>

namespace tent {
namespace {

constexpr std::uint32_t kSignalEvery = 8;  // messages; reads are always told of
constexpr std::uint32_t kPlaceMask = 0x7fffffff;

// What the devices' own words leave open, and what to do.
const char* remedy(ibv::WcStatus status) {
  switch (status) {
    case ibv::kWcRemoteAccess:
      return " (what the peer named is under a key that is no longer valid, or out of its range; "
             "the bytes take another way)";
    case ibv::kWcRetryExceeded:
      return " (packets do not get through, or none of this size: see `python -m torch_tent doctor "
             "--rdma`)";
    default:
      return "";
  }
}

}  // namespace

// ---- what the device tells ----

void RdmaLink::completed(const WorkNumber& work, const ibv::Wc& wc) {
  if (wc.status != ibv::kWcSuccess && state.live()) {
    state.broke(std::string("RDMA: ") + verbs_.wc_status_str(wc.status) + remedy(wc.status));
  }
  if (!work.receive) {
    retire(work.place);
  } else if (wc.status == ibv::kWcSuccess) {
    took(work.place, wc.byte_len);
  }
}

void RdmaLink::retire(std::uint32_t place) {
  for (bool last = false; !last && done_ != posted_; ++done_) {
    last = (done_ & kPlaceMask) == place;
    switch (works_[done_ % works_.size()]) {
      case Work::Message:
        ++messages_done_;
        break;
      case Work::Read:
        --reads_out_;
        slices_in.read_done();
        break;
      case Work::Mark:
        break;
    }
  }
}

void RdmaLink::took(std::uint32_t slot, std::uint32_t bytes) {
  Prefix prefix;
  if (slot >= kSlots || bytes < sizeof prefix || bytes > kSlotBytes) {
    state.broke("malformed message from the peer; the link was closed");
    return;
  }
  std::memcpy(&prefix, in_slot(slot), sizeof prefix);
  const std::uint32_t spent = messages_posted_ - credits_given_;
  if (prefix.magic != Prefix{}.magic || prefix.kind > 1 || prefix.credits > spent) {
    state.broke("malformed message from the peer; the link was closed");
    return;
  }
  credits_given_ += prefix.credits;
  greeted_ |= prefix.kind == 1;
  if (bytes == sizeof prefix) {
    post_slot(slot);
  } else {
    arrived_[(arrived_first_ + arrived_count_++) % kSlots] = {slot, bytes, sizeof prefix};
  }
}

// ---- the stream ----

// `left`: credits that must remain. The last one is for giving credits back, so that two ends that
// have much to say never wait for each other.
bool RdmaLink::may_send(std::uint32_t left) const {
  const std::uint32_t spent = messages_posted_ - credits_given_;
  return peer_slots_ > spent + left && messages_posted_ - messages_done_ < kSlots &&
         work_room() > 0;
}

std::ptrdiff_t RdmaLink::write_some(const iovec* parts, int count) {
  std::size_t total = 0, offset = 0;
  int at = 0;
  while (at < count && may_send(1)) {
    std::uint8_t* to = out_slot(messages_posted_ % kSlots) + sizeof(Prefix);
    std::uint32_t filled = 0;
    while (at < count && filled < payload_max_) {
      const std::size_t taken =
          std::min<std::size_t>(parts[at].iov_len - offset, payload_max_ - filled);
      std::memcpy(to + filled, static_cast<const std::uint8_t*>(parts[at].iov_base) + offset,
                  taken);
      filled += std::uint32_t(taken);
      offset += taken;
      if (offset == parts[at].iov_len) ++at, offset = 0;
    }
    if (!post_message(0, filled)) return -1;
    total += filled;
  }
  return std::ptrdiff_t(total);
}

bool RdmaLink::post_message(std::uint16_t kind, std::uint32_t payload) {
  const std::uint32_t bytes = sizeof(Prefix) + payload;
  std::uint8_t* slot = out_slot(messages_posted_ % kSlots);
  const Prefix prefix{.kind = kind, .credits = owed_};
  std::memcpy(slot, &prefix, sizeof prefix);
  ibv::Sge sge{reinterpret_cast<std::uint64_t>(slot), bytes, arena_.mr->lkey};
  ibv::SendWr wr{};
  wr.sg_list = &sge;
  wr.num_sge = 1;
  wr.opcode = ibv::kSend;
  if (++unsignaled_ >= kSignalEvery) wr.send_flags |= ibv::kSignaled;
  if (bytes <= inline_max_) wr.send_flags |= ibv::kInline;
  if (!post_work(wr, Work::Message)) return false;
  ++messages_posted_;
  owed_ = 0;
  return true;
}

bool RdmaLink::post_work(ibv::SendWr& wr, Work work) {
  wr.wr_id = WorkNumber{seat_, turn_, false, posted_ & kPlaceMask}.packed();
  ibv::SendWr* bad = nullptr;
  const int error = Verbs::post_send(qp_, &wr, &bad);
  if (error != 0) {
    errno = error;
    return state.broke(errno_text("RDMA: the device takes no more work"));
  }
  works_[posted_++ % works_.size()] = work;
  if ((wr.send_flags & ibv::kSignaled) != 0) unsignaled_ = 0;
  return true;
}

std::ptrdiff_t RdmaLink::read_some(const iovec* parts, int count) {
  std::size_t total = 0, offset = 0;
  int at = 0;
  while (at < count && arrived_count_ > 0) {
    Arrived& first = arrived_[arrived_first_];
    const std::size_t taken =
        std::min<std::size_t>(parts[at].iov_len - offset, first.bytes - first.taken);
    std::memcpy(static_cast<std::uint8_t*>(parts[at].iov_base) + offset,
                in_slot(first.slot) + first.taken, taken);
    total += taken;
    offset += taken;
    first.taken += std::uint32_t(taken);
    if (offset == parts[at].iov_len) ++at, offset = 0;
    if (first.taken == first.bytes) {
      const std::uint32_t slot = first.slot;
      arrived_first_ = (arrived_first_ + 1) % kSlots;
      --arrived_count_;
      post_slot(slot);
    }
  }
  return std::ptrdiff_t(total);
}

void RdmaLink::post_slot(std::uint32_t slot) {
  ibv::Sge sge{reinterpret_cast<std::uint64_t>(in_slot(slot)), kSlotBytes, arena_.mr->lkey};
  ibv::RecvWr wr{WorkNumber{seat_, turn_, true, slot}.packed(), nullptr, &sge, 1};
  ibv::RecvWr* bad = nullptr;
  const int error = Verbs::post_recv(qp_, &wr, &bad);
  if (error == 0) {
    ++owed_;
    return;
  }
  errno = error;
  state.broke(errno_text("RDMA: the device takes no more receives"));
}

void RdmaLink::return_credits() {
  if (owed_ >= kSlots / 2 && may_send(0)) post_message(0, 0);
}

// ---- where the bytes of slices lie, and how they come ----

bool RdmaLink::names(const Pieces& memory) { return has_keys(memory, RdmaUse::Source); }
bool RdmaLink::places(const Pieces& memory) { return has_keys(memory, RdmaUse::Landing); }

bool RdmaLink::has_keys(const Pieces& memory, RdmaUse use) {
  RdmaKey key;
  return std::all_of(memory.begin(), memory.end(), [&](const Piece& piece) {
    for (std::uint64_t at = piece.address; at < piece.address + piece.bytes; at = key.end) {
      if (!memory_.find(verbs_, device_.pd(), use, at, key)) return false;
    }
    return true;
  });
}

bool RdmaLink::carries(const Pieces& pieces, std::uint64_t slice_bytes) {
  if (memory_.is_gpu(pieces.front().address)) return false;  // nobody here can read it
  RdmaKey key;
  return slice_bytes <= kCarriedMax ||
         !memory_.find(verbs_, device_.pd(), RdmaUse::Source, pieces.front().address, key);
}

std::uint64_t RdmaLink::name(const Pieces& pieces, std::uint64_t&, std::vector<NamedPiece>& out) {
  std::uint64_t named = 0;
  for (const Piece& piece : pieces) {
    const std::uint64_t end = piece.address + piece.bytes;
    for (std::uint64_t at = piece.address; at < end;) {
      RdmaKey key;
      if (out.size() == kChunkPiecesMax) return named;
      if (!memory_.find(verbs_, device_.pd(), RdmaUse::Source, at, key)) {
        if (memory_.is_gpu(at)) state.broke("memory of a GPU cannot be registered any more");
        return named;
      }
      const std::uint64_t bytes = std::min(end, key.end) - at;
      out.push_back({key.rkey, at, bytes});
      named += bytes;
      at += bytes;
    }
  }
  return named;
}

bool RdmaLink::may_read() const {
  return reads_out_ < reads_max_ && work_room() > kSlots && !bouncing_;
}

ReadPoster::Posted RdmaLink::post_read(const NamedPiece& from, const Pieces& to) {
  std::array<ibv::Sge, kSgesMax> sges;
  ibv::SendWr wr{};
  wr.sg_list = sges.data();
  std::uint64_t bytes = 0;
  for (const Piece& piece : to) {
    const std::uint64_t end = piece.address + piece.bytes;
    bool more = true;
    for (std::uint64_t at = piece.address; at < end && more;) {
      RdmaKey key;
      more = wr.num_sge < int(kSgesMax) &&
             memory_.find(verbs_, device_.pd(), RdmaUse::Landing, at, key);
      if (!more) break;
      const auto part = std::uint32_t(std::min(end, key.end) - at);
      sges[std::size_t(wr.num_sge++)] = {at, part, key.lkey};
      bytes += part;
      at += part;
    }
    if (!more) break;
  }
  if (bytes == 0 && memory_.is_gpu(to.front().address)) {
    state.broke("memory of a GPU cannot be registered any more");
    return {};
  }
  if (bytes == 0) return bounce(from);
  wr.opcode = ibv::kRdmaRead;
  wr.send_flags = ibv::kSignaled;
  wr.wr.rdma = {from.place, std::uint32_t(from.space)};
  if (!post_work(wr, Work::Read)) return {};
  ++reads_out_;
  return {bytes, nullptr};
}

// The landing place cannot be registered: the bytes come to our own memory first.
ReadPoster::Posted RdmaLink::bounce(const NamedPiece& from) {
  if (reads_out_ > 0) return {};
  if (bounce_.mr == nullptr) {
    const Status status = make_arena(bounce_, kBounceBytes);
    if (!status.ok()) {
      state.broke(status.text);
      return {};
    }
  }
  const auto bytes = std::uint32_t(std::min(from.bytes, kBounceBytes));
  ibv::Sge sge{reinterpret_cast<std::uint64_t>(bounce_.bytes.get()), bytes, bounce_.mr->lkey};
  ibv::SendWr wr{};
  wr.sg_list = &sge;
  wr.num_sge = 1;
  wr.opcode = ibv::kRdmaRead;
  wr.send_flags = ibv::kSignaled;
  wr.wr.rdma = {from.place, std::uint32_t(from.space)};
  if (!post_work(wr, Work::Read)) return {};
  ++reads_out_;
  bouncing_ = true;
  return {bytes, bounce_.bytes.get()};
}

}  // namespace tent
