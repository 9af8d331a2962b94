// Stage: transport. What shm and cma have in common: links over a LocalChannel, the doorbell, the
// Unix socket, the peer's end. They differ in how pieces of memory are named and fetched.
// Called by the thread that holds the engine lock; nothing blocks.
// What always holds: copies happen inside poll(), about kPollBytes per link and call; while
// peers are awake and nothing ends, no system call is made per frame.
#pragma once

#include <array>
#include <map>
#include <memory>

#include "transports/doorbell.h"
#include "transports/link_table.h"
#include "transports/local_channel.h"
#include "transports/local_slices.h"
#include "transports/peer_socket.h"

namespace tent {

class LocalLink : public PieceNamer, public PieceFetcher {
 public:
  // `own`: how slices are taken, where it is not by copying them at once.
  explicit LocalLink(SliceReader* own = nullptr)
      : channel(state),
        slices_out(state, *this),
        slices_in(state, channel, *this),
        reader(state, channel, own != nullptr ? *own : slices_in),
        writer(state, channel, slices_out) {}

  // A parcel that is the transport's own business came. False: it is none; sets the fault itself.
  virtual bool take_parcel(Parcel& parcel) = 0;
  // Takes what has been copied meanwhile, where copies end by themselves. True: look again.
  virtual bool advance(Receiver&, bool& /*moved*/) { return false; }
  // Returns when no copy goes on for the link.
  virtual void stop() {}
  // Takes all parcels that have come. False: the link has a fault, or the peer has closed it.
  bool take_parcels();
  // True once the parcel is on its way; false: it waits, or the link has a fault.
  bool send_parcel(const ParcelLabel& label, int first_fd = -1, int second_fd = -1);
  bool flush_parcels();

  LinkState state;
  LocalChannel channel;
  PeerSocket socket;
  PeerDoorbell bell;  // known once the peer's first parcel has come
  LocalSliceWriter slices_out;
  LocalSliceReader slices_in;
  FrameReader reader;
  FrameWriter writer;
  int slot = -1;
  bool behind = false;          // the bound of poll() ended the last call, not the ring
  bool parcels_wait = false;    // for room in the socket
  bool waits_for_room = false;  // EPOLLOUT is asked for
  bool ended = false;           // the peer has closed the socket
};

class LocalTransport : public Transport {
 public:
  ~LocalTransport() override;

  Status connect(const Connection& connection) final;
  void post(LinkId link, Frame frame) final;
  void send(LinkId link, Receiver& receiver) final;
  bool poll(Receiver& receiver) final;
  void close(LinkId link) final;
  bool behind(LinkId link) const final;
  std::function<bool()> peer_copies(LinkId link) final;

 protected:
  LocalTransport(int wait_set, Doorbell& doorbell, std::uint64_t poll_bytes);
  virtual std::unique_ptr<LocalLink> make_link() = 0;
  // Why this peer cannot be served, or Ok.
  virtual Status accepts(const PeerSocket& peer) const = 0;
  virtual void greet(LocalLink&) {}  // a link that is up: the transport's own first words

  // To be called by the destructor of a transport whose links use its own members.
  void drop_all();

  // Leaves the link such that whatever can go on is heard of: by our own mark (`more`, or a fault),
  // by the peer's ring, or by its socket.
  void settle(LocalLink& link, bool more);

  LinkTable<LocalLink> links_;

 private:
  bool serve(LocalLink& link, Receiver& receiver);
  bool look_at_sockets(Receiver& receiver);
  void look_at(LocalLink& link, std::uint32_t events, bool process, Receiver& receiver);
  void end(LocalLink& link, Receiver& receiver);
  Status watch(LocalLink& link);
  void watch_room(LocalLink& link);
  void drop(LocalLink& link);

  Doorbell& doorbell_;
  const std::uint64_t poll_bytes_;
  Descriptor ready_;  // epoll: the Unix sockets and pidfds with something to say
  std::map<LinkId, LocalChannel::Withdrawal> parting_;  // closed while the peer copied
  Doorbell::Slots mine_{};
  std::array<LocalLink*, Doorbell::kSlots> by_slot_{};
  std::uint32_t wakes_seen_ = 0, polls_ = 0;
};

}  // namespace tent
