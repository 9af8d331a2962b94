// Stage: tests. Fuzz target: what a hostile or broken peer may send on a link, from the first byte
// to what the Node makes of it. The reader of TCP links brings frames to a Node that has a segment
// and transfers of every kind under way; whatever comes, only open memory may be written.
// Called by libFuzzer, or by replay.cpp. An input is a list of steps: frames whose magic, size and
// numbers are made right unless the step says otherwise, raw bytes, and short reads.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/node.h"
#include "transports/frame_reader.h"
#include "transports/inline_slices.h"

namespace tent {
namespace {

constexpr std::size_t kOpenBytes = 4096, kGuard = 256;
constexpr std::size_t kStepsMax = 200;
constexpr std::uint64_t kContext = 1, kTag = 2, kKey = 7;

// The steps of an input; reading past its end gives zeros.
class Steps {
 public:
  Steps(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}
  bool any() const { return left_ > 0; }
  template <class T>
  T take() {
    T value{};
    const std::size_t bytes = std::min(sizeof value, left_);
    if (bytes > 0) std::memcpy(&value, data_, bytes);
    skip(bytes);
    return value;
  }
  std::span<const std::uint8_t> take_bytes(std::size_t most) {
    const std::span<const std::uint8_t> found(data_, std::min(most, left_));
    skip(found.size());
    return found;
  }

 private:
  void skip(std::size_t bytes) {
    data_ += bytes;
    left_ -= bytes;
  }
  const std::uint8_t* data_;
  std::size_t left_;
};

class Stream final : public ByteStream {  // what has been sent and not yet read
 public:
  void add(const void* data, std::size_t bytes) {
    const auto* from = static_cast<const std::uint8_t*>(data);
    bytes_.insert(bytes_.end(), from, from + bytes);
  }
  void limit(std::size_t bytes) { limit_ = bytes; }
  std::ptrdiff_t write_some(const iovec*, int) override { return 0; }
  std::ptrdiff_t read_some(const iovec* parts, int count) override {
    std::size_t got = 0;
    for (int n = 0; n < count; ++n) {
      const std::size_t most = std::min(bytes_.size() - at_, limit_ - got);
      const std::size_t taken = std::min<std::size_t>(parts[n].iov_len, most);
      if (taken > 0) std::memcpy(parts[n].iov_base, bytes_.data() + at_, taken);
      at_ += taken;
      got += taken;
      if (taken < parts[n].iov_len) break;
    }
    return std::ptrdiff_t(got);
  }

 private:
  std::vector<std::uint8_t> bytes_;
  std::size_t at_ = 0, limit_ = SIZE_MAX;
};

// A Node with one peer on two links, and a Receiver in front of it as in the engine.
class Victim final : public Outbox, public Receiver {
 public:
  Victim() : node_(CoreSettings{}, *this) {
    peer_ = node_.add_peer("peer");
    for (LinkId link : {1, 2}) node_.link_up(peer_, link, {}, now_);
    const auto base = reinterpret_cast<std::uint64_t>(memory_.data() + kGuard);
    segment_ = node_.segments().add({{base, kOpenBytes, 512}}, true, true, 8, kKey).id;
    start(Request::Op::Recv, base, kOpenBytes);
    start(Request::Op::Send, base, kOpenBytes);
    start(Request::Op::Read, base, kOpenBytes);
    start(Request::Op::Write, base, kOpenBytes);
    memory_.fill(0xee);
    node_.flush(now_);
  }

  void check() const {
    const auto touched = [](std::uint8_t byte) { return byte != 0xee; };
    const auto begin = memory_.begin(), end = memory_.end();
    if (std::any_of(begin, begin + kGuard, touched) || std::any_of(end - kGuard, end, touched)) {
      std::abort();  // bytes landed outside of what was open
    }
  }
  void pass(TimeNs time) {
    now_ += time;
    node_.flush(now_);
    node_.tick(now_);
  }
  void lose(LinkId link) { node_.link_down(link, {Code::Failed, "it ended", ""}, now_); }
  bool closed(LinkId link) const { return closed_[link % closed_.size()]; }

  // Receiver
  bool frame(LinkId link, const FrameHeader& header, std::span<const std::uint8_t> body) override {
    return node_.frame(link, header, body, now_);
  }
  bool slice(LinkId link, const FrameHeader& header) override {
    return node_.slice(link, header, now_);
  }
  bool landing(LinkId link, TransferId flow, std::uint64_t offset, std::uint64_t length,
               Pieces& out) override {
    return node_.landing(link, flow, offset, length, out);
  }
  bool landed(LinkId link, const FrameHeader& header) override {
    return node_.landed(link, header, now_);
  }
  bool source(LinkId, TransferId flow, std::uint64_t offset, std::uint64_t length,
              Pieces& out) override {
    return node_.source(flow, offset, length, out);
  }
  void down(LinkId, const Status&) override {}

  // Outbox
  void post(LinkId, Frame) override {}
  void close(LinkId link, const Status&) override { closed_[link % closed_.size()] = true; }
  void done(Report) override {}
  void dial(PeerId, RailKinds) override {}
  void peer_lost(PeerId, const Status&) override {}
  void noted(SegmentId) override {}
  void traced(const SliceEvent&) override {}
  bool reaches(LinkId, const Layout&, Device, RailKinds) override { return true; }
  bool placing(LinkId, TransferId) override { return false; }

 private:
  void start(Request::Op op, std::uint64_t base, std::uint64_t bytes) {
    Request request;
    request.op = op;
    request.id = node_.next_id();
    request.peer = peer_;
    request.context = kContext;
    request.tag = kTag;
    request.local = Layout::contiguous(base, bytes);
    if (op == Request::Op::Read || op == Request::Op::Write) {
      request.remote = {1, kKey, 0, Layout::contiguous(0, bytes)};
    }
    node_.submit(std::move(request), now_);
  }

  std::array<std::uint8_t, kOpenBytes + 2 * kGuard> memory_{};
  std::array<bool, 4> closed_{};
  TimeNs now_ = kSecond;
  Node node_;
  PeerId peer_ = 0;
  SegmentId segment_ = 0;
};

struct Link {  // the receiving half of a TCP link
  LinkState state;
  Stream stream;
  InlineSliceReader slices{state};
  FrameReader reader{state, stream, slices};
  std::uint64_t sequence = 0;
};

class Conversation {
 public:
  Conversation() {
    for (LinkId n : {0, 1}) links_[n].state.id = n + 1;
  }

  // One step of the peer: byte 0 says which, and which link; the rest is its content.
  void step(Steps& steps) {
    const auto what = steps.take<std::uint8_t>();
    Link& link = links_[what >> 7];
    switch (what & 0x0f) {
      case 0: {
        const auto bytes = steps.take_bytes(steps.take<std::uint8_t>());
        link.stream.add(bytes.data(), bytes.size());
        break;
      }
      case 1:
        link.stream.limit(1 + steps.take<std::uint8_t>());
        break;
      case 2:
        victim_.pass(TimeNs(steps.take<std::uint16_t>()) * kMillisecond);
        break;
      case 3:
        if (link.state.live()) victim_.lose(link.state.id);
        link.state.closed = true;
        break;
      default:
        send(link, what, steps);
    }
    receive();
  }

 private:
  void send(Link& link, std::uint8_t what, Steps& steps) {
    FrameHeader header;
    header.kind = FrameKind(1 + (what & 0x0f) % 5);
    header.flow = steps.take<std::uint8_t>();
    header.offset = steps.take<std::uint16_t>();
    header.ack = steps.take<std::uint8_t>();
    header.eager_consumed = steps.take<std::uint8_t>();
    const auto body = steps.take_bytes(steps.take<std::uint16_t>() % 5000);
    header.body_bytes = std::uint32_t(body.size());
    if (header.kind == FrameKind::Control) header.control = ++control_;
    if (header.kind != FrameKind::Ack) header.sequence = ++link.sequence;
    if ((what & 0x40) != 0) {  // one byte of the header is another one
      const std::size_t at = steps.take<std::uint8_t>() % sizeof header;
      reinterpret_cast<std::uint8_t*>(&header)[at] ^= steps.take<std::uint8_t>();
    }
    link.stream.add(&header, sizeof header);
    link.stream.add(body.data(), body.size());
    if (header.kind != FrameKind::Slice) return;
    const Ending ending = (what & 0x20) != 0 ? Ending::Torn : Ending::Intact;
    link.stream.add(&ending, sizeof ending);
  }

  void receive() {
    for (Link& link : links_) {
      if (victim_.closed(link.state.id)) link.state.closed = true;
      bool moved = true;
      for (int n = 0; n < 100 && moved && link.state.live(); ++n) {
        moved = false;
        link.reader.receive(victim_, 1 << 16, moved);
      }
      if (!link.state.fault.ok() && !link.state.closed) {  // as the transports do
        link.state.closed = true;
        victim_.lose(link.state.id);
      }
    }
    victim_.check();
  }

  Victim victim_;
  std::array<Link, 2> links_;
  std::uint64_t control_ = 0;
};

}  // namespace
}  // namespace tent

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  tent::Steps steps(data, size);
  tent::Conversation conversation;
  for (std::size_t n = 0; n < tent::kStepsMax && steps.any(); ++n) conversation.step(steps);
  return 0;
}
