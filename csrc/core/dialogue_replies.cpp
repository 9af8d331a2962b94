// Stage: engine. Dialogue, what the peer says and what we answer; see dialogue.h.
#include <algorithm>
#include <utility>

#include "core/copies.h"
#include "core/dialogue.h"
#include "core/sabotage.h"

namespace tent {

void Dialogue::peer_took(std::uint64_t eager_bytes) {
  if (eager_bytes > eager_taken_ && eager_bytes <= eager_sent_) eager_taken_ = eager_bytes;
}

void Dialogue::on_message(Message message, TimeNs now) {
  switch (message.kind) {
    case MessageKind::Offer:
      return on_offer(message, now);
    case MessageKind::Accept:
      if (Outbound* outbound = out.find(message.id)) {
        outbound->landing = landing_of(message.meta);
        out.start(*outbound);
      }
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
  if (status.ok() && destination.device() != kHost && destination.bytes() != 0) {
    Inbound inbound;
    inbound.flow = message.id;
    inbound.segment = message.target.segment;
    inbound.blocks = sorted_blocks(message.target.layout);
    inbound.has_note = message.has_note;
    inbound.note = std::move(message.text);
    inbound.destination = std::move(destination);
    return place(in.open(std::move(inbound)), message.payload);
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
  const bool in_slices = (message.meta & kReadInSlices) != 0 || source.device() != kHost;
  if (message.bytes == 0 ||
      (message.bytes <= host_.settings.inline_bytes_max && rails == kAllRails && !in_slices)) {
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
  outbound.landing = landing_of(message.meta);
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
  Message cancelled;
  cancelled.kind = MessageKind::Cancelled;
  cancelled.id = message.id;
  say_when_placed(message.id, cancelled);
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

void Dialogue::place(const Inbound& inbound, const Body& bytes) {
  in.arrived(inbound.flow, 0, bytes.size());
  host_.outbox.place(peer_, inbound.flow, inbound.destination, bytes);
}

void Dialogue::on_placed(const std::string& rail, TransferId flow, std::uint64_t fresh,
                         const Status& status, TimeNs now) {
  Inbound* inbound = status.ok() ? in.placed(flow, fresh) : in.find(flow);
  if (inbound != nullptr && !status.ok()) {
    const TransferId transfer = inbound->transfer;
    stop_inbound(flow, now);
    refuse(flow, status.code, status.text);
    end(transfer, status, now);
  } else if (inbound != nullptr) {
    if (Transfer* transfer = host_.transfers.find(inbound->transfer)) transfer->count(rail, fresh);
    if (inbound->complete()) complete(*inbound, now);
  }
  say_owed(flow);
}

void Dialogue::say_owed(TransferId flow) {
  if (host_.outbox.copying_in(peer_, flow)) return;
  const auto [first, last] = owed_.equal_range(flow);
  for (auto owed = first; owed != last; ++owed) carrier_.say(owed->second);
  owed_.erase(first, last);
}

void Dialogue::source_failed(TransferId flow, const Status& status, TimeNs now) {
  const Outbound* outbound = out.find(flow);
  if (outbound == nullptr) return;
  if (outbound->request != 0) refuse(outbound->request, status.code, status.text);
  say(MessageKind::Cancel, flow);
  finish(flow, status, now);
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
  carrier_.stop_placing(flow, now);
}

}  // namespace tent
