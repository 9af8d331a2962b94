// Stage: engine. Dialogue, what the caller asks for; see dialogue.h.
#include "core/dialogue.h"

#include <algorithm>
#include <utility>

#include "core/copies.h"

namespace tent {

namespace {

constexpr unsigned kFlowPeerShift = 40;
constexpr TimeNs kCancelPatience = 250 * kMillisecond;
constexpr TimeNs kLetGoCheck = 5 * kMillisecond;
constexpr const char* kUnanswered = "the peer did not answer a cancel";
constexpr std::size_t kInlineBlocksMax = 512;

std::size_t block_count(const Layout& layout) {
  std::size_t count = 0;
  for (const Part& part : layout.parts()) count += 1 + (part.blocks ? part.blocks->size() : 0);
  return count;
}

}  // namespace

Dialogue::Dialogue(SessionHost host, PeerId peer, Carrier& carrier)
    : host_(host), peer_(peer), carrier_(carrier) {}

void Dialogue::say(MessageKind kind, std::uint64_t id) {
  Message message;
  message.kind = kind;
  message.id = id;
  carrier_.say(message);
}

void Dialogue::refuse(std::uint64_t id, Code code, const std::string& why) {
  Message message;
  message.kind = MessageKind::Refuse;
  message.id = id;
  message.code = code;
  message.text = why;
  say_when_placed(id, message);
}

// What is said of an inbound flow may end the peer's transfer: nothing may land for it after that.
void Dialogue::say_when_placed(TransferId flow, const Message& message) {
  if ((flow & kFlowBit) != 0 && host_.outbox.copying_in(peer_, flow)) {
    owed_.emplace(flow, message);
  } else {
    carrier_.say(message);
  }
}

void Dialogue::end(TransferId transfer, Status status, TimeNs now) {
  if (transfer != 0) host_.transfers.end(transfer, std::move(status), now);
}

// ---- calls ----

Outbound& Dialogue::new_flow(Transfer* transfer, Layout source) {
  Outbound outbound;
  outbound.flow = kFlowBit | TransferId(peer_) << kFlowPeerShift | next_flow_++;
  outbound.source = std::move(source);
  if (transfer != nullptr) {
    outbound.transfer = transfer->request.id;
    outbound.view.priority = transfer->request.priority;
    outbound.view.deadline = transfer->request.deadline;
    outbound.view.rails = transfer->request.rails;
    outbound.held = transfer->request.held;
    transfer->flow = outbound.flow;
  }
  return out.add(std::move(outbound));
}

bool Dialogue::may_inline(const Request& request) const {
  const std::uint64_t bytes = request.local.bytes();
  if (bytes == 0) return true;  // nothing travels that a rail could be required for
  return bytes <= host_.settings.inline_bytes_max && request.rails == kAllRails &&
         request.local.device() == kHost;
}

void Dialogue::submit(Transfer& transfer, TimeNs) {
  transfer.stage = Transfer::Stage::Moving;
  switch (transfer.request.op) {
    case Request::Op::Send:
      return submit_send(transfer);
    case Request::Op::Write:
      return submit_write(transfer);
    case Request::Op::Read:
      return submit_read(transfer);
    case Request::Op::Recv:
      return;  // a receive has no session until it is matched
  }
}

void Dialogue::submit_send(Transfer& transfer) {
  const Request& request = transfer.request;
  Message offer;
  offer.kind = MessageKind::Offer;
  offer.context = request.context;
  offer.tag = request.tag;
  offer.meta = request.meta;
  offer.bytes = request.local.bytes();
  offer.is_inline = may_inline(request) &&
                    eager_sent_ - eager_taken_ + offer.bytes <= host_.settings.eager_bytes_max;
  if (offer.is_inline) {
    offer.payload = gather(request.local);
    eager_sent_ += offer.bytes;
  }
  offer.id = new_flow(&transfer, request.local).flow;
  carrier_.say(offer, offer.is_inline ? offer.id : 0, offer.is_inline);
}

void Dialogue::submit_write(Transfer& transfer) {
  Request& request = transfer.request;
  Outbound& outbound = new_flow(&transfer, request.local);
  outbound.landing = request.remote.layout.device();
  if (may_inline(request) && block_count(request.remote.layout) <= kInlineBlocksMax) {
    Message write;
    write.kind = MessageKind::Write;
    write.id = outbound.flow;
    write.has_note = request.has_note;
    write.text = request.note;
    write.target = std::move(request.remote);
    write.payload = gather(request.local);
    carrier_.say(write, outbound.flow, false);
    return;
  }
  Opening opening;
  opening.kind = Opening::Kind::Write;
  opening.bytes = request.local.bytes();
  opening.has_note = request.has_note;
  opening.note = request.note;
  opening.target = std::move(request.remote);
  outbound.opening = std::make_shared<const Body>(encode(opening));
  out.start(outbound);
}

void Dialogue::submit_read(Transfer& transfer) {
  Request& request = transfer.request;
  if (request.held) return;  // release() asks
  Message read;
  read.kind = MessageKind::Read;
  read.id = request.id;
  read.meta = read_meta(request.rails, request.priority, request.local.device());
  read.bytes = request.local.bytes();
  read.target = std::move(request.remote);
  carrier_.say(read);
}

void Dialogue::accept(Transfer& receive, Offer offer, TimeNs now) {
  const TransferId id = receive.request.id;
  const std::uint64_t room = receive.request.local.bytes();
  if (offer.is_inline) eager_consumed_ += offer.bytes;
  receive.report.peer = peer_;
  std::string wrong;
  if (offer.bytes != room) {
    wrong = "the sender sends " + std::to_string(offer.bytes) + " bytes and the receiver expects " +
            std::to_string(room) + ": both tensors must have the same size";
  } else if (offer.meta != 0 && receive.request.meta != 0 && offer.meta != receive.request.meta) {
    wrong = "the sender's and the receiver's dtypes differ: both tensors must have the same dtype";
  }
  if (!wrong.empty()) {
    in.forget(offer.flow);
    refuse(offer.flow, Code::Mismatch, wrong);
    return end(id, {Code::Mismatch, wrong, ""}, now);
  }
  const bool on_gpu = receive.request.local.device() != kHost;
  if (offer.is_inline && (!on_gpu || offer.bytes == 0)) {
    scatter(offer.payload, receive.request.local);
    in.forget(offer.flow);
    receive.count("inline", offer.bytes);
    return end(id, {}, now);
  }
  receive.stage = Transfer::Stage::Moving;
  receive.flow = offer.flow;
  Inbound inbound;
  inbound.flow = offer.flow;
  inbound.transfer = id;
  inbound.destination = receive.request.local;
  const Inbound& opened = in.open(std::move(inbound));
  if (receive.request.held) {
    receive.accept_owed = true;
    receive.early = std::move(offer.payload);
  } else if (offer.is_inline) {
    place(opened, offer.payload);
  } else {
    say_accept(receive);
  }
}

void Dialogue::say_accept(const Transfer& receive) {
  Message accept;
  accept.kind = MessageKind::Accept;
  accept.id = receive.flow;
  accept.meta = landing_meta(receive.request.local.device());
  carrier_.say(accept);
}

void Dialogue::release(Transfer& transfer, TimeNs) {
  if (transfer.request.op == Request::Op::Read) return submit_read(transfer);
  if (transfer.request.op != Request::Op::Recv) {
    if (Outbound* outbound = out.find(transfer.flow)) out.release(*outbound);
    return;
  }
  if (!std::exchange(transfer.accept_owed, false)) return;
  const Inbound* inbound = in.find(transfer.flow);
  if (inbound == nullptr) return;
  if (transfer.early.empty()) return say_accept(transfer);
  place(*inbound, std::exchange(transfer.early, {}));
}

void Dialogue::cancel(Transfer& transfer, Status why, TimeNs now) {
  if (transfer.stage == Transfer::Stage::Cancelling) return;
  const TransferId id = transfer.request.id;
  if (transfer.request.op == Request::Op::Recv) {  // matched: our side of it stops at once
    const TransferId flow = transfer.flow;
    stop_inbound(flow, now);
    refuse(flow, Code::Cancelled, "the receiver stopped: " + why.text);
    return end(id, std::move(why), now);
  }
  transfer.stage = Transfer::Stage::Cancelling;
  transfer.ending = std::move(why);
  const Outbound* outbound = out.find(transfer.flow);
  // A GPU may take any time for what it has begun, and its peer answers only after that.
  const bool on_gpu = outbound != nullptr && outbound->landing != kHost;
  const TimeNs patience = on_gpu ? host_.settings.peer_timeout : kCancelPatience;
  host_.transfers.wait_until(transfer, now + patience);
  if (transfer.request.op == Request::Op::Read) {
    if (transfer.flow != 0) stop_inbound(transfer.flow, now);
    Message cancel;
    cancel.kind = MessageKind::Cancel;
    cancel.id = id;
    return say_when_placed(transfer.flow, cancel);
  }
  if (Outbound* stopped = out.find(transfer.flow)) {
    out.stop(*stopped);
    stopped->cancelling = true;
  }
  say(MessageKind::Cancel, transfer.flow);
}

// A peer that was stopped in the middle of copying out of our memory goes on where it was. Into
// memory that a write named, nothing may come but what was written: until the peer is through, our
// memory must stay as it is. What a receive or a read was given so does not count, and it fails.
void Dialogue::patience_ended(Transfer& transfer, TimeNs now) {
  const Request::Op op = transfer.request.op;
  if (transfer.lets_go_by == kNever) {
    carrier_.cut_off(kUnanswered, now);
    transfer.lets_go_by = now + host_.settings.peer_timeout;
  }
  if (op == Request::Op::Write && !host_.outbox.quiet(peer_) && now < transfer.lets_go_by) {
    return host_.transfers.wait_until(transfer, now + kLetGoCheck);
  }
  const Status status = transfer.ending;
  const TransferId id = transfer.request.id, flow = transfer.flow;
  if (op != Request::Op::Read) {
    carrier_.unsay(flow);
    out.drop(flow);
  }
  end(id, status, now);
}

void Dialogue::drop_segment(SegmentId segment, const std::vector<std::int64_t>* blocks,
                            const std::string& why, TimeNs now) {
  for (TransferId flow : in.into_segment(segment, blocks)) {
    stop_inbound(flow, now);
    refuse(flow, Code::Access, why);
  }
  for (TransferId flow : out.from_segment(segment, blocks)) {
    Outbound* outbound = out.find(flow);
    if (outbound->cancelling) continue;
    out.stop(*outbound);
    outbound->cancelling = true;
    outbound->patience = now + kCancelPatience;
    refuse(outbound->request, Code::Access, why);
    say(MessageKind::Cancel, flow);
  }
}

bool Dialogue::cancelling_reads_of(SegmentId segment) const {
  const auto flows = out.from_segment(segment, nullptr);
  return std::any_of(flows.begin(), flows.end(),
                     [&](TransferId flow) { return out.find(flow)->cancelling; });
}

void Dialogue::tick(TimeNs now) {
  std::vector<TransferId> unanswered;
  out.each([&](Outbound& outbound) {
    if (outbound.patience <= now) unanswered.push_back(outbound.flow);
  });
  if (unanswered.empty()) return;
  carrier_.cut_off(kUnanswered, now);
  for (TransferId flow : unanswered) out.drop(flow);
}

void Dialogue::no_rails(RailKinds up, RailKinds rails, const std::string& why, TimeNs now) {
  std::vector<TransferId> stuck;
  out.each([&](Outbound& outbound) {
    const RailKinds allowed = outbound.view.rails;
    if (outbound.ready && (allowed & up) == 0 && (allowed & ~rails) == 0) {
      stuck.push_back(outbound.flow);
    }
  });
  for (TransferId flow : stuck) {
    const TransferId request = out.find(flow)->request;
    if (request != 0) refuse(request, Code::Unreachable, why);
    say(MessageKind::Cancel, flow);
    finish(flow, {Code::Unreachable, why, ""}, now);
  }
}

void Dialogue::finish(TransferId flow, Status status, TimeNs now) {
  const Outbound* outbound = out.find(flow);
  if (outbound == nullptr) return;
  const TransferId transfer = outbound->transfer;
  out.drop(flow);
  if (const Transfer* record = host_.transfers.find(transfer)) {
    if (record->stage == Transfer::Stage::Cancelling) status = record->ending;
  }
  end(transfer, std::move(status), now);
}

}  // namespace tent
