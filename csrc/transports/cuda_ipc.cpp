// Stage: transport. See cuda_ipc.h.
#include "transports/cuda_ipc.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace tent {

class CudaIpcLink final : public LocalLink, public GpuFetcher {
 public:
  struct Reads {  // what one of the peer's devices said that it can read
    std::set<std::uint64_t> gpus;
    bool whole = false;
  };

  explicit CudaIpcLink(CudaIpcTransport& owner)
      : LocalLink(&slices),
        slices(state, channel, *this),
        opened([&owner](Device device) { return owner.gpu(device); }),
        owner_(owner) {
    slices_out.allow(kBodyBytesMax);
  }

  // ---- we send ---------------------------------------------------------------------------------
  std::uint64_t name(const Pieces& pieces, std::uint64_t&, std::vector<NamedPiece>& out) override {
    preface_bytes_ = 0;
    std::uint64_t named = 0;
    for (const Piece& piece : pieces) {
      // Allocations that happen to be neighbours may share a piece.
      for (std::uint64_t done = 0; done < piece.bytes;) {
        if (out.size() == kChunkPiecesMax) return named;
        std::string why;
        const SharedSpace* space = owner_.spaces_.of(piece.address + done, why);
        if (space == nullptr) {
          state.broke("memory of a GPU was freed while it was sent: " + why);
          return named;
        }
        if (!told.contains(space->number)) {
          if (preface_bytes_ != 0) return named;  // one in a chunk
          tell(*space);
        }
        const std::uint64_t place = piece.address + done - space->base;
        const std::uint64_t bytes = std::min(piece.bytes - done, space->bytes - place);
        out.push_back({space->number, place, bytes});
        named += bytes;
        done += bytes;
      }
    }
    return named;
  }
  std::span<const std::uint8_t> preface() override { return {preface_.data(), preface_bytes_}; }

  // ---- we receive ------------------------------------------------------------------------------
  void learn(const SharedSpace& space) override {
    if (space.replaces != 0) slices.wait();
    opened.learn(space, socket.pid() == ::getpid());
  }

  GpuCopyId copy(TransferId flow, std::span<const NamedPiece> from, const Pieces& to) override {
    int device = kHost;
    const Cuda* cuda = Cuda::loaded();
    const bool on_gpu = cuda != nullptr && !to.empty() &&
                        cuda->api().pointer_attribute(&device, kCudaPointerDeviceOrdinal,
                                                      to.front().address) == kCudaSuccess;
    if (!on_gpu || owner_.gpu(Device(device)) == nullptr) {
      state.broke("the peer names a GPU's memory for bytes that belong elsewhere");
      return 0;
    }
    from_.clear();
    mapped_ = true;
    for (const NamedPiece& piece : from) {
      if (!find(piece, Device(device))) return 0;
    }
    return owner_.copier_->copy(state.id, flow, Device(device), from_, to, mapped_);
  }
  void finish(GpuCopyId id) override { owner_.copier_->finish(id); }

  bool advance(Receiver& receiver, bool& moved) override {
    const bool more = slices.advance(receiver, moved);
    if (slices.idle()) {
      for (const std::uint64_t number : std::exchange(freed_, {})) opened.forget(number);
    }
    return more;
  }
  void stop() override {
    slices.stop();
    opened.close_all();
  }

  bool take_parcel(Parcel& parcel) override {
    const ParcelLabel& label = parcel.label;
    if (label.kind == ParcelKind::Forget) {
      if (freed_.size() >= kFreedMax) return false;
      freed_.push_back(label.id);
      return true;
    }
    if (label.kind != ParcelKind::Reads || label.id >= kDevicesMax) return false;
    Reads& known = reads[Device(label.id)];
    if (known.gpus.size() >= kDevicesMax) return false;
    if (label.bytes != 0) known.gpus.insert(label.bytes);
    known.whole |= label.bytes == 0;
    owner_.news_ = true;
    return true;
  }

  // What LocalSliceReader would ask for; this link has its own reader.
  bool fetch(std::span<const NamedPiece>, const Pieces&) override { return false; }
  bool release(const NamedPiece&) override { return false; }

  CudaSliceReader slices;
  OpenedSpaces opened;
  std::set<std::uint64_t> told;   // allocations that the peer knows
  std::set<Device> announced;     // our devices that the peer knows
  std::map<Device, Reads> reads;  // of the peer's devices

 private:
  static constexpr std::size_t kDevicesMax = 256, kFreedMax = 4096;

  void tell(const SharedSpace& space) {
    const ChunkHeader header{ChunkHeader::Kind::Space, 1};
    std::memcpy(preface_.data(), &header, sizeof header);
    std::memcpy(preface_.data() + sizeof header, &space, sizeof space);
    preface_bytes_ = sizeof header + sizeof space;
    told.erase(space.replaces);
    told.insert(space.number);
  }

  // Appends where the piece lies for copies of `device` to from_.
  bool find(const NamedPiece& piece, Device device) {
    const SharedSpace* space = opened.find(piece.space);
    if (space == nullptr || piece.place > space->bytes ||
        piece.bytes > space->bytes - piece.place) {
      return state.broke("the peer names memory that it has not shared; the link was closed");
    }
    std::string why;
    const std::uint64_t base = opened.open(piece.space, device, why);
    if (base == 0) {
      owner_.denied_.emplace(device, space->gpu);
      return state.broke(why);
    }
    // Within one process nothing was opened: only copies find their way to another GPU's memory.
    mapped_ &= socket.pid() != ::getpid() || space->gpu == owner_.gpu(device)->key();
    from_.push_back({base + piece.place, piece.bytes});
    return true;
  }

  CudaIpcTransport& owner_;
  std::array<std::uint8_t, kPrefaceBytesMax> preface_;
  std::size_t preface_bytes_ = 0;
  std::vector<std::uint64_t> freed_;  // to be closed once nothing is copied
  Pieces from_;
  bool mapped_ = true;  // kernels can read all of it
};
static_assert(sizeof(ChunkHeader) + sizeof(SharedSpace) <= kPrefaceBytesMax);

CudaIpcTransport::CudaIpcTransport(int wait_set, Doorbell& doorbell, std::uint64_t poll_bytes)
    : LocalTransport(wait_set, doorbell, poll_bytes),
      spaces_([this](Device device) { return gpu(device); }) {}

const Gpu* CudaIpcTransport::gpu(Device device) const {
  return copier_ == nullptr ? nullptr : copier_->gpu(device);
}

CudaIpcLink* CudaIpcTransport::link_of(LinkId id) const {
  return static_cast<CudaIpcLink*>(links_.find(id));
}

std::unique_ptr<LocalLink> CudaIpcTransport::make_link() {
  return std::make_unique<CudaIpcLink>(*this);
}

Status CudaIpcTransport::accepts(const PeerSocket& peer) const {
  if (peer.pid() > 0) return {};
  return failed("the peer is in another PID namespace: memory of GPUs is not shared with it");
}

Status CudaIpcTransport::register_region(const Region&) { return {}; }

void CudaIpcTransport::greet(LocalLink& link) {
  if (copier_ == nullptr) return;
  for (const Device device : copier_->gpus()) announce(static_cast<CudaIpcLink&>(link), device);
}

void CudaIpcTransport::opened(Device device) {
  links_.each([&](LocalLink& link) { announce(static_cast<CudaIpcLink&>(link), device); });
}

void CudaIpcTransport::announce(CudaIpcLink& link, Device device) {
  if (!link.announced.insert(device).second) return;
  const Cuda& cuda = gpu(device)->cuda();
  ParcelLabel label;
  label.kind = ParcelKind::Reads;
  label.id = std::uint64_t(device);
  for (int other = 0; other < cuda.device_count(); ++other) {
    label.bytes = cuda.key(other);
    if (label.bytes == 0 || denied_.contains({device, label.bytes})) continue;
    if (cuda.can_read(device, other)) link.send_parcel(label);
  }
  label.bytes = 0;
  link.send_parcel(label);
  settle(link, true);
}

void CudaIpcTransport::copied(LinkId id, GpuCopyId copy, const Status& status) {
  CudaIpcLink* link = link_of(id);
  if (link == nullptr) return;
  if (!status.ok()) link->state.broke(status.text);
  link->slices.copied(copy);
  settle(*link, true);
}

bool CudaIpcTransport::look_for_freed() {
  if (spaces_.empty()) return false;
  for (const std::uint64_t number : spaces_.freed()) {
    ParcelLabel label;
    label.kind = ParcelKind::Forget;
    label.id = number;
    links_.each([&](LocalLink& any) {
      auto& link = static_cast<CudaIpcLink&>(any);
      if (link.told.erase(number) == 0) return;
      link.send_parcel(label);
      settle(link, true);
    });
  }
  return !spaces_.empty();
}

Reach CudaIpcTransport::reach(LinkId id, const Pieces& memory) const {
  if (links_.find(id) == nullptr) return Reach::No;
  for (const Piece& piece : memory) {
    const SharedSpace* space = spaces_.of(piece.address, why_not_);
    if (space == nullptr) return Reach::No;
    if (piece.bytes > space->bytes - (piece.address - space->base)) {
      why_not_ = "it is in several allocations";
      return Reach::No;
    }
  }
  return Reach::Direct;
}

bool CudaIpcTransport::reads(LinkId id, Device source, Device landing) const {
  const CudaIpcLink* link = link_of(id);
  const Gpu* ours = gpu(source);
  if (link == nullptr || ours == nullptr) return false;
  const auto known = link->reads.find(landing);
  return known != link->reads.end() && known->second.gpus.contains(ours->key());
}

std::string CudaIpcTransport::refuses(LinkId id, Device source, Device landing) const {
  const CudaIpcLink* link = link_of(id);
  if (source == kHost) return "the bytes do not come from a GPU's memory";
  if (landing == kHost) return "the bytes do not go to a GPU's memory";
  if (link == nullptr || reads(id, source, landing)) return "";
  const auto known = link->reads.find(landing);
  if (known == link->reads.end() || !known->second.whole) return "";
  return "the peer's cuda:" + std::to_string(landing) +
         " cannot read our cuda:" + std::to_string(source) +
         ": the peer does not see that GPU (CUDA_VISIBLE_DEVICES), the two have no access to each "
         "other, or opening its memory there has failed before";
}

}  // namespace tent
