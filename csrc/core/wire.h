// Stage: wire. What travels between two engines: a 64-byte header and a body. Little-endian.
// Frame kinds Slice, Open and Control carry a sequence number that is consecutive per link;
// every header acknowledges, cumulatively, what was consumed from the other side on that link.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/layout.h"
#include "core/types.h"

namespace tent {

inline constexpr std::uint32_t kMagic = 0x31544e54;  // "TNT1"
inline constexpr std::uint32_t kBodyBytesMax = 64u << 20;

enum class FrameKind : std::uint8_t {
  Slice = 1,    // body: payload (TCP) or a description of where it lies (same host)
  Open = 2,     // body: where the slices of a flow land; repeated on every link before its slices
  Control = 3,  // body: one message of the session's reliable ordered control stream
  Ack = 4,      // no body, no sequence number
  Ping = 5,     // no body; asks for an Ack
};

struct FrameHeader {
  std::uint32_t magic = kMagic;
  FrameKind kind = FrameKind::Ack;
  std::uint8_t flags = 0;
  std::uint16_t reserved = 0;
  std::uint32_t body_bytes = 0;      // Slice: the payload's length
  std::uint32_t crc = 0;             // CRC32C of a slice's payload when flags & kHasCrc
  std::uint64_t sequence = 0;        // per link, from 1; 0 on Ack
  std::uint64_t ack = 0;             // highest sequence number consumed from the peer on this link
  std::uint64_t eager_consumed = 0;  // bytes of inline sends that receives have taken, per session
  std::uint64_t flow = 0;            // Slice, Open: the source's transfer id
  std::uint64_t offset = 0;          // Slice: its place on the transfer's line of bytes
  std::uint64_t control = 0;         // Control: number in the session's control stream, from 1
};
static_assert(sizeof(FrameHeader) == 64);
inline constexpr std::uint8_t kHasCrc = 1;
inline constexpr std::uint8_t kAckLater =
    2;  // nobody waits for that: it may come with the next frame's

using Body = std::vector<std::uint8_t>;

struct Frame {  // what a session hands to a transport; a Slice's memory is asked for when it is
                // sent
  FrameHeader header;
  std::shared_ptr<const Body> body;  // null for Slice, Ack and Ping
};

// ---- the right to touch remote memory, and where in it -----------------------------------------

struct Target {
  SegmentId segment = 0;
  std::uint64_t key = 0;
  std::uint32_t epoch = 0;  // blocks revoked after this epoch are closed to the holder
  Layout layout;            // offsets within the segment's planes
};

// ---- control messages --------------------------------------------------------------------------

enum class MessageKind : std::uint8_t {
  Offer = 1,      // send: context, tag, bytes, meta; payload inline when it is small
  Accept = 2,     // your offer was matched: send its slices; meta says to which GPU
  Write = 3,      // small one-sided write, payload inline
  Read = 4,       // please send me this memory
  ReadData = 5,   // small answer to Read, payload inline
  Done = 6,       // every byte of your flow has landed
  Refuse = 7,     // your transfer cannot go on: code, text
  Cancel = 8,     // I stop my transfer `id`; drop what you have of it, answer Cancelled
  Cancelled = 9,  // nothing of your transfer `id` will be read or written here any more
  Fence = 10,     // I closed link `id`; close your end, answer Fenced
  Fenced = 11,    // nothing that came over link `id` can land here any more
  Bye = 12,       // this engine closes
};

struct Message {
  MessageKind kind = MessageKind::Bye;
  std::uint64_t id = 0;       // transfer (the kind says whose) or link
  std::uint64_t context = 0;  // Offer
  std::uint64_t tag = 0;      // Offer
  std::uint64_t bytes = 0;    // Offer, Read
  std::uint32_t meta = 0;     // Offer: dtype code or 0; Read, Accept: how to send it (read_meta)
  Code code = Code::Ok;       // Refuse
  bool is_inline = false;     // Offer
  bool has_note = false;      // Write
  std::string text;           // Refuse: why; Write: the notification
  Target target;              // Write, Read
  Body payload;               // inline bytes
};

// Read's meta: the rails that the reader allows in bits 0-7, its priority in bit 8, whether the
// answer must come in slices, however small it is, and in bits 16-31 the GPU that it lands on, as
// the receiver counts them. Accept's has these last bits alone.
inline constexpr std::uint32_t kReadInSlices = 1u << 9;
constexpr std::uint32_t landing_meta(Device device) { return std::uint32_t(device + 1) << 16; }
constexpr Device landing_of(std::uint32_t meta) { return Device(std::int32_t(meta >> 16) - 1); }
constexpr std::uint32_t read_meta(RailKinds rails, Priority priority, Device device) {
  return std::uint32_t(rails) | std::uint32_t(priority) << 8 |
         (device != kHost ? kReadInSlices : 0) | landing_meta(device);
}

struct Opening {  // body of Open
  enum class Kind : std::uint8_t { Write = 1, ReadReply = 2, Send = 3 };
  Kind kind = Kind::Write;
  std::uint64_t bytes = 0;
  std::uint64_t request = 0;  // ReadReply: the reader's transfer id
  bool has_note = false;
  std::string note;
  Target target;  // Write
};

Body encode(const Message& message);
Body encode(const Opening& opening);
// False when the bytes are not exactly one well-formed message; never reads outside `body`.
bool decode(std::span<const std::uint8_t> body, Message& out);
bool decode(std::span<const std::uint8_t> body, Opening& out);
// Header sanity that needs no state: magic, kind, sizes.
bool well_formed(const FrameHeader& header);

}  // namespace tent
