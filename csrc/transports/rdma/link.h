// Stage: transport. One RDMA link: a reliable queue pair, and over it two things. A stream of bytes
// in small messages, which carries the frames; each message costs a credit, which the peer gives
// back when its buffer is free again. And RDMA reads, with which the owner of a landing place
// fetches what a slice named: nobody can write into another's memory.
// Engine lock held. Owned by RdmaTransport.
// What always holds: after shut() the device reads and writes nothing for this link any more.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "transports/descriptor.h"
#include "transports/local_slices.h"
#include "transports/rdma/device.h"
#include "transports/rdma/memory.h"
#include "transports/rdma/port.h"
#include "transports/rdma/retirement.h"
#include "transports/rdma/slices.h"

namespace tent {

// How the peer reaches our end, as it goes over the authenticated control connection.
struct RdmaEndpoint {
  static constexpr std::uint32_t kMagic = 0x52544e54;  // "TNTR"
  std::uint32_t magic = kMagic;
  std::uint32_t queue_pair = 0;
  std::uint32_t first_packet = 0;  // number of the first packet that we send
  std::uint16_t lid = 0;
  std::uint16_t slots = 0;  // messages that we can take before we give credits back
  std::uint32_t slot_bytes = 0;
  std::uint8_t mtu = 0;  // as the verbs number it
  std::uint8_t link_layer = 0;
  std::uint8_t reads_in = 0;
  std::uint8_t reserved = 0;
  ibv::Gid gid{};
};
static_assert(sizeof(RdmaEndpoint) == 40);

// The middle of joining two ends. It runs without the engine lock: for an address, the kernel may
// have to ask the network, and takes a second where that is down.
struct RdmaJoining {
  explicit RdmaJoining(const Verbs& of) : verbs(of) {}
  Status run();  // any thread

  const Verbs& verbs;
  std::mutex running;     // taken by run(), and by whoever ends the pair
  ibv::Qp* qp = nullptr;  // null: the link was closed meanwhile
  ibv::QpAttr to_receive{}, to_send{};
  ibv::Gid own{};
  std::string device;
};

class RdmaLink final : public ByteStream, public PieceNamer, public ReadPoster {
 public:
  static constexpr std::uint32_t kSlots = 32;        // messages each way
  static constexpr std::uint32_t kSlotBytes = 2048;  // a slice's header and a few pieces
  static constexpr std::uint32_t kSendWork = 96;     // messages, reads and the last mark
  static constexpr std::uint32_t kWorkMax = kSendWork + kSlots;
  static constexpr std::uint64_t kCarriedMax = 1024;  // a slice up to this rides in the stream

  RdmaLink(LinkId id, const Verbs& verbs, RdmaDevice& device, RdmaMemory& memory,
           Retirement& retirement);
  ~RdmaLink() override;

  // ---- its beginning ---------------------------------------------------------------------------
  Status open(const RdmaPort& port);  // the queue pair exists and can receive
  RdmaEndpoint endpoint() const { return own_; }
  // ... and can send, once what comes out of here has run.
  Status join(const RdmaEndpoint& peer, bool dialed, std::shared_ptr<RdmaJoining>& out);
  void greet();  // a message that proves the way
  bool greeted() const { return greeted_; }
  void answer_greeting();  // once, where the peer has dialed
  // ... and its end.
  void shut();

  // ---- for the device --------------------------------------------------------------------------
  void completed(const WorkNumber& work, const ibv::Wc& wc);
  bool drained() const { return marked_ && done_ == posted_; }
  bool mark() { return !std::exchange(touched_, true); }  // false: it was touched already
  void unmark() { touched_ = false; }

  // ---- its parts -------------------------------------------------------------------------------
  std::ptrdiff_t write_some(const iovec* parts, int count) override;
  std::ptrdiff_t read_some(const iovec* parts, int count) override;
  std::uint64_t name(const Pieces& pieces, std::uint64_t& budget,
                     std::vector<NamedPiece>& out) override;
  bool carries(const Pieces& pieces, std::uint64_t slice_bytes) override;
  bool may_read() const override;
  Posted post_read(const NamedPiece& from, const Pieces& to) override;
  void copied() override { bouncing_ = false; }
  bool names(const Pieces& memory);   // whether all of it can be read by the peer
  bool places(const Pieces& memory);  // ... and written by our device
  // Gives credits back when the peer may come to need them.
  void return_credits();

  const RdmaPort& port() const { return port_; }
  RdmaDevice& device() { return device_; }

  LinkState state;
  Descriptor companion;  // the control connection: its end is the end of the peer
  RdmaSliceReader slices_in;
  LocalSliceWriter slices_out;
  FrameReader reader;
  FrameWriter writer;
  bool up = false;  // the Node knows it

 private:
  enum class Work : std::uint8_t { Message, Read, Mark };
  struct Prefix {  // of every message
    std::uint16_t magic = 0x4d54;
    std::uint16_t kind = 0;  // 0: bytes of the stream; 1: a greeting
    std::uint32_t credits = 0;
  };
  static_assert(sizeof(Prefix) == 8);
  struct Arrived {
    std::uint32_t slot = 0, bytes = 0, taken = 0;
  };

  static constexpr std::uint32_t kSgesMax = 8;  // pieces of our memory in one read
  static constexpr std::uint64_t kBounceBytes = 64u << 10;

  std::uint8_t* out_slot(std::uint32_t number) { return arena_.bytes.get() + number * kSlotBytes; }
  std::uint8_t* in_slot(std::uint32_t number) { return out_slot(kSlots + number); }
  std::uint32_t work_room() const { return kSendWork - 1 - (posted_ - done_); }
  Status make_arena(RdmaArena& arena, std::size_t bytes);
  Status make_queue_pair();
  bool has_keys(const Pieces& memory, RdmaUse use);
  Posted bounce(const NamedPiece& from);
  void mark_end();
  bool post_message(std::uint16_t kind, std::uint32_t payload);
  bool may_send(std::uint32_t credits_left) const;
  bool post_work(ibv::SendWr& wr, Work work);
  void post_slot(std::uint32_t slot);
  void took(std::uint32_t slot, std::uint32_t bytes);
  void retire(std::uint32_t place);

  const Verbs& verbs_;
  RdmaDevice& device_;
  RdmaMemory& memory_;
  Retirement& retirement_;
  std::shared_ptr<RdmaJoining> joining_;
  RdmaPort port_;
  RdmaEndpoint own_;
  RdmaArena arena_, bounce_;
  ibv::Qp* qp_ = nullptr;
  std::uint16_t seat_ = 0, turn_ = 0;
  bool seated_ = false, greeted_ = false, answers_ = false, touched_ = false, marked_ = false,
       bouncing_ = false;
  std::uint32_t inline_max_ = 0, reads_max_ = 1;

  // Counts; they wrap. Work of the sending queue completes in order.
  std::uint32_t posted_ = 0, done_ = 0, unsignaled_ = 0;
  std::array<Work, 128> works_{};
  std::uint32_t messages_posted_ = 0, messages_done_ = 0, reads_out_ = 0;
  std::uint32_t peer_slots_ = 0, payload_max_ = 0;  // of the peer's messages
  std::uint32_t credits_given_ = 0, owed_ = 0;      // given back by the peer; owed to it
  std::array<Arrived, kSlots> arrived_;
  std::uint32_t arrived_first_ = 0, arrived_count_ = 0;
};

}  // namespace tent
