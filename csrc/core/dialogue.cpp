// Stage: engine. The protocol of transfers, message by message; see dialogue.h.
#include "core/dialogue.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/sabotage.h"

namespace tent {

namespace {

constexpr TransferId kFlowBit = TransferId(1)
                                << 63;  // flow ids; other ids on the wire are requests
constexpr unsigned kFlowPeerShift = 40;
constexpr TimeNs kCancelPatience = 250 * kMillisecond;
constexpr std::size_t kInlineBlocksMax = 512;

Body gather(const Layout& source) {
  Pieces pieces;
  source.pieces(0, source.bytes(), pieces);
  Body bytes;
  bytes.reserve(source.bytes());
  for (const Piece& piece : pieces) {
    const auto* data = reinterpret_cast<const std::uint8_t*>(piece.address);
    bytes.insert(bytes.end(), data, data + piece.bytes);
  }
  return bytes;
}

void scatter(const Body& bytes, const Layout& destination) {
  Pieces pieces;
  destination.pieces(0, bytes.size(), pieces);
  const std::uint8_t* data = bytes.data();
  for (const Piece& piece : pieces) {
    std::memcpy(reinterpret_cast<void*>(piece.address), data, piece.bytes);
    data += piece.bytes;
  }
}

std::size_t block_count(const Layout& layout) {
  std::size_t count = 0;
  for (const Part& part : layout.parts()) count += 1 + (part.blocks ? part.blocks->size() : 0);
  return count;
}

std::vector<std::int64_t> sorted_blocks(const Layout& layout) {
  std::vector<std::int64_t> all;
  const std::vector<std::int64_t>* last = nullptr;
  for (const Part& part : layout.parts()) {
    if (!part.blocks || part.blocks.get() == last) continue;
    last = part.blocks.get();
    all.insert(all.end(), last->begin(), last->end());
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
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
  carrier_.say(message);
}

void Dialogue::end(TransferId transfer, Status status, TimeNs now) {
  if (transfer != 0) host_.transfers.end(transfer, std::move(status), now);
}

// ---- calls
// ---------------------------------------------------------------------------------------

Outbound& Dialogue::new_flow(Transfer* transfer, Layout source) {
  Outbound outbound;
  outbound.flow = kFlowBit | TransferId(peer_) << kFlowPeerShift | next_flow_++;
  outbound.source = std::move(source);
  if (transfer != nullptr) {
    outbound.transfer = transfer->request.id;
    outbound.view.priority = transfer->request.priority;
    outbound.view.deadline = transfer->request.deadline;
    outbound.view.rails = transfer->request.rails;
    transfer->flow = outbound.flow;
  }
  return out.add(std::move(outbound));
}

bool Dialogue::may_inline(const Request& request) const {
  const std::uint64_t bytes = request.local.bytes();
  if (bytes == 0) return true;  // nothing travels that a rail could be required for
  return bytes <= host_.settings.inline_bytes_max && request.rails == kAllRails;
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
  Message read;
  read.kind = MessageKind::Read;
  read.id = request.id;
  read.meta = read_meta(request.rails, request.priority);
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
  if (offer.is_inline) {
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
  in.open(std::move(inbound));
  say(MessageKind::Accept, offer.flow);
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
  host_.transfers.wait_until(transfer, now + kCancelPatience);
  if (transfer.request.op == Request::Op::Read) {
    if (transfer.flow != 0) stop_inbound(transfer.flow, now);
    return say(MessageKind::Cancel, id);
  }
  if (Outbound* outbound = out.find(transfer.flow)) {
    out.stop(*outbound);
    outbound->cancelling = true;
  }
  say(MessageKind::Cancel, transfer.flow);
}

void Dialogue::patience_ended(Transfer& transfer, TimeNs now) {
  const Status status = transfer.ending;
  const TransferId id = transfer.request.id, flow = transfer.flow;
  carrier_.cut_off("the peer did not answer a cancel", now);
  if (transfer.request.op != Request::Op::Read) {
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
  if (!unanswered.empty()) carrier_.cut_off("the peer did not answer a cancel", now);
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

// ---- from the peer
// -------------------------------------------------------------------------------

void Dialogue::peer_took(std::uint64_t eager_bytes) {
  if (eager_bytes > eager_taken_ && eager_bytes <= eager_sent_) eager_taken_ = eager_bytes;
}

void Dialogue::on_message(Message message, TimeNs now) {
  switch (message.kind) {
    case MessageKind::Offer:
      return on_offer(message, now);
    case MessageKind::Accept:
      if (Outbound* outbound = out.find(message.id)) out.start(*outbound);
      return;
    case MessageKind::Write:
      return on_write(message, now);
    case MessageKind::Read:
      return on_read(message, now);
    case MessageKind::ReadData:
      return on_read_data(message, now);
    case MessageKind::Done:
      return finish(message.id, {}, now);
    case MessageKind::Refuse:
      return on_refuse(message, now);
    case MessageKind::Cancel:
      return on_cancel(message, now);
    case MessageKind::Cancelled:
      return on_cancelled(message, now);
    case MessageKind::Fence:
      return carrier_.link_fenced_by_peer(message.id, now);
    case MessageKind::Fenced:
      return carrier_.link_is_fenced(message.id, now);
    case MessageKind::Bye:
      return carrier_.peer_closes();
  }
}

void Dialogue::on_offer(Message& message, TimeNs now) {
  if (in.over(message.id)) return;
  if (message.is_inline && message.payload.size() != message.bytes) {
    return refuse(message.id, Code::Failed, "malformed offer");
  }
  Offer offer;
  offer.peer = peer_;
  offer.flow = message.id;
  offer.bytes = message.bytes;
  offer.meta = message.meta;
  offer.is_inline = message.is_inline;
  offer.payload = std::move(message.payload);
  const auto receive = host_.matcher.offer({message.context, message.tag}, offer);
  if (!receive) return;
  if (Transfer* transfer = host_.transfers.find(*receive)) accept(*transfer, std::move(offer), now);
}

void Dialogue::on_write(Message& message, TimeNs now) {
  if (in.over(message.id)) return;
  Layout destination;
  Status status = host_.segments.resolve(message.target, Segments::Access::Write, destination);
  if (status.ok() && destination.bytes() != message.payload.size()) {
    status = {Code::Mismatch, "the payload and the target differ in size", ""};
  }
  in.forget(message.id);
  if (!status.ok()) return refuse(message.id, status.code, status.text);
  scatter(message.payload, destination);
  if (message.has_note) note(message.target.segment, std::move(message.text));
  (void)now;
  say(MessageKind::Done, message.id);
}

void Dialogue::on_read(Message& message, TimeNs) {
  Layout source;
  Status status = host_.segments.resolve(message.target, Segments::Access::Read, source);
  if (status.ok() && source.bytes() != message.bytes) {
    status = {Code::Mismatch, "the memory asked for and the reader's tensor differ in size", ""};
  }
  if (!status.ok()) return refuse(message.id, status.code, status.text);
  const auto rails = RailKinds(message.meta & 0xff);
  if (message.bytes == 0 ||
      (message.bytes <= host_.settings.inline_bytes_max && rails == kAllRails)) {
    Message data;
    data.kind = MessageKind::ReadData;
    data.id = message.id;
    data.payload = gather(source);
    return carrier_.say(data);
  }
  Opening opening;
  opening.kind = Opening::Kind::ReadReply;
  opening.bytes = message.bytes;
  opening.request = message.id;
  Outbound& outbound = new_flow(nullptr, std::move(source));
  outbound.request = message.id;
  outbound.segment = message.target.segment;
  outbound.blocks = sorted_blocks(message.target.layout);
  outbound.view.rails = rails;
  outbound.view.priority = Priority(message.meta >> 8 & 1);
  outbound.opening = std::make_shared<const Body>(encode(opening));
  out.start(outbound);
}

void Dialogue::on_read_data(Message& message, TimeNs now) {
  Transfer* transfer = host_.transfers.find(message.id);
  if (transfer == nullptr || transfer->request.op != Request::Op::Read ||
      transfer->request.peer != peer_ || transfer->stage != Transfer::Stage::Moving) {
    return;
  }
  if (message.payload.size() != transfer->request.local.bytes()) {
    return end(message.id, {Code::Failed, "the peer answered a read with a wrong size", ""}, now);
  }
  scatter(message.payload, transfer->request.local);
  transfer->count("inline", message.payload.size());
  end(message.id, {}, now);
}

void Dialogue::on_refuse(const Message& message, TimeNs now) {
  const Status status{message.code, message.text, ""};
  if ((message.id & kFlowBit) != 0) return finish(message.id, status, now);
  Transfer* transfer = host_.transfers.find(message.id);
  if (transfer == nullptr || transfer->request.op != Request::Op::Read ||
      transfer->request.peer != peer_) {
    return;
  }
  if (transfer->flow != 0) stop_inbound(transfer->flow, now);
  const bool cancelling = transfer->stage == Transfer::Stage::Cancelling;
  end(message.id, cancelling ? Status(transfer->ending) : status, now);
}

void Dialogue::on_cancel(const Message& message, TimeNs now) {
  if ((message.id & kFlowBit) == 0) {  // a reader wants no more
    if (Outbound* outbound = out.by_request(message.id)) {
      say(MessageKind::Cancelled, message.id);
      return out.drop(outbound->flow);
    }
    return say(MessageKind::Cancelled, message.id);
  }
  const Status why{Code::Failed, "the sender cancelled the transfer", ""};
  if (Inbound* inbound = in.find(message.id)) {
    const TransferId transfer = inbound->transfer;
    stop_inbound(message.id, now);
    end(transfer, why, now);
  } else if (const auto bytes = host_.matcher.cancel_offer(peer_, message.id)) {
    eager_consumed_ += *bytes;
  }
  in.forget(message.id);
  say(MessageKind::Cancelled, message.id);
}

void Dialogue::on_cancelled(const Message& message, TimeNs now) {
  if ((message.id & kFlowBit) != 0) {
    return finish(message.id, {Code::Cancelled, "cancelled", ""}, now);
  }
  Transfer* transfer = host_.transfers.find(message.id);
  if (transfer == nullptr || transfer->stage != Transfer::Stage::Cancelling ||
      transfer->request.peer != peer_) {
    return;
  }
  end(message.id, Status(transfer->ending), now);
}

bool Dialogue::on_open(TransferId flow, Opening opening, TimeNs) {
  if ((flow & kFlowBit) == 0) return false;
  if (in.over(flow) || in.find(flow) != nullptr) return true;
  Inbound inbound;
  inbound.flow = flow;
  Status status;
  if (opening.kind == Opening::Kind::Write) {
    status = host_.segments.resolve(opening.target, Segments::Access::Write, inbound.destination);
    inbound.segment = opening.target.segment;
    inbound.blocks = sorted_blocks(opening.target.layout);
    inbound.has_note = opening.has_note;
    inbound.note = std::move(opening.note);
  } else if (opening.kind == Opening::Kind::ReadReply) {
    Transfer* transfer = host_.transfers.find(opening.request);
    if (transfer == nullptr || transfer->request.op != Request::Op::Read ||
        transfer->request.peer != peer_ || transfer->stage != Transfer::Stage::Moving) {
      in.forget(flow);  // the read is over; its Cancel is on the way
      return true;
    }
    transfer->flow = flow;
    inbound.transfer = opening.request;
    inbound.destination = transfer->request.local;
  } else {
    return false;
  }
  if (status.ok() && inbound.destination.bytes() != opening.bytes) {
    status = {Code::Mismatch, "the sender's and the receiver's sizes differ", ""};
  }
  if (!status.ok()) {
    in.forget(flow);
    refuse(flow, status.code, status.text);
    return true;
  }
  in.open(std::move(inbound));
  return true;
}

void Dialogue::on_landed(const std::string& rail, TransferId flow, std::uint64_t offset,
                         std::uint64_t length, TimeNs now) {
  Inbound* inbound = in.landed(flow, offset, length);
  if (inbound == nullptr) return;
  if (Transfer* transfer = host_.transfers.find(inbound->transfer)) transfer->count(rail, length);
  if (sabotage::early_note && inbound->has_note) {
    note(inbound->segment, inbound->note);
    inbound->has_note = false;
  }
  if (inbound->complete()) complete(*inbound, now);
}

void Dialogue::complete(Inbound& inbound, TimeNs now) {
  const TransferId flow = inbound.flow, transfer = inbound.transfer;
  if (inbound.has_note) note(inbound.segment, std::move(inbound.note));
  in.forget(flow);
  say(MessageKind::Done, flow);
  end(transfer, {}, now);
}

void Dialogue::note(SegmentId segment, std::string payload) {
  Segment* owner = host_.segments.find(segment);
  if (owner == nullptr) return;
  owner->notes.push_back({peer_, std::move(payload)});
  host_.outbox.noted(segment);
}

void Dialogue::stop_inbound(TransferId flow, TimeNs now) {
  in.forget(flow);
  carrier_.stop_placing(now);
}

}  // namespace tent
