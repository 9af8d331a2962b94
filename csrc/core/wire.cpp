// Stage: wire. Encoding and bounded decoding of control messages; every read is checked, no state.
#include "core/wire.h"

#include <algorithm>

namespace tent {

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire format is little-endian");

class Writer {
 public:
  template <class T>
  void put(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&value);
    body_.insert(body_.end(), bytes, bytes + sizeof(T));
  }
  template <class Bytes>
  void put_bytes(const Bytes& bytes) {
    put(std::uint32_t(bytes.size()));
    body_.insert(body_.end(), bytes.begin(), bytes.end());
  }
  void reserve(std::size_t bytes) { body_.reserve(bytes); }
  // Room for `bytes` more, to be written before anything else is put.
  std::uint8_t* extend(std::size_t bytes) {
    body_.resize(body_.size() + bytes);
    return body_.data() + body_.size() - bytes;
  }
  Body take() { return std::move(body_); }

 private:
  Body body_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> body) : body_(body) {}

  template <class T>
  bool get(T& value) {
    if (body_.size() < sizeof(T)) return false;
    std::memcpy(&value, body_.data(), sizeof(T));
    body_ = body_.subspan(sizeof(T));
    return true;
  }
  bool get_bool(bool& value) {
    std::uint8_t byte;
    if (!get(byte) || byte > 1) return false;
    value = byte != 0;
    return true;
  }
  template <class Bytes>
  bool get_bytes(Bytes& out) {
    std::uint32_t size;
    if (!get(size) || size > body_.size()) return false;
    out.assign(body_.begin(), body_.begin() + size);
    body_ = body_.subspan(size);
    return true;
  }
  std::size_t left() const { return body_.size(); }

 private:
  std::span<const std::uint8_t> body_;
};

constexpr std::uint32_t kPartsMax = 1u << 16, kDimsMax = 64;
// Of one layout, all its lists together. Runs are short on the wire: what they become is bounded by
// what the largest body holds.
constexpr std::uint32_t kBlocksMax = kBodyBytesMax / sizeof(std::int64_t);

// Block lists are written as runs of consecutive indices: (first, how many).
// Twice over the list, so that nothing is built on the way: a hundred thousand scattered blocks are
// a megabyte here, and the first slice waits for it.
constexpr std::size_t kRunBytes = sizeof(std::int64_t) + sizeof(std::uint32_t);

void put_blocks(Writer& out, const BlockList& blocks) {
  const std::size_t count = blocks.size();
  std::size_t runs = count == 0 ? 0 : 1;
  for (std::size_t i = 1; i < count; ++i) runs += blocks[i] != blocks[i - 1] + 1;
  out.put(std::uint32_t(count));
  out.put(std::uint32_t(runs));
  std::uint8_t* at = out.extend(runs * kRunBytes);
  for (std::size_t i = 0; i < count;) {
    const std::size_t first = i++;
    while (i < count && blocks[i] == blocks[i - 1] + 1) ++i;
    const std::int64_t block = blocks[first];
    const auto length = std::uint32_t(i - first);
    std::memcpy(at, &block, sizeof block);
    std::memcpy(at + sizeof block, &length, sizeof length);
    at += kRunBytes;
  }
}

bool get_blocks(Reader& in, std::uint32_t most, std::vector<std::int64_t>& blocks) {
  std::uint32_t total, runs;
  if (!in.get(total) || !in.get(runs) || total > most || runs > in.left() / 12) return false;
  blocks.reserve(total);
  for (std::uint32_t r = 0; r < runs; ++r) {
    std::int64_t first;
    std::uint32_t count;
    if (!in.get(first) || !in.get(count) || count > total - blocks.size()) return false;
    if (first < 0 || first > INT64_MAX - std::int64_t(count)) return false;
    for (std::uint32_t i = 0; i < count; ++i) blocks.push_back(first + i);
  }
  return blocks.size() == total;
}

void put_layout(Writer& out, const Layout& layout) {
  out.put(std::uint32_t(layout.parts().size()));
  const BlockList* last = nullptr;
  for (const Part& part : layout.parts()) {
    out.put(part.base);
    out.put(part.plane);
    out.put(part.piece_bytes);
    out.put(std::uint32_t(part.dims.size()));
    for (const Dim& dim : part.dims) {
      out.put(dim.count);
      out.put(dim.stride);
    }
    out.put(std::uint8_t(!part.blocks ? 0 : part.blocks.get() == last ? 2 : 1));
    if (part.blocks && part.blocks.get() != last) put_blocks(out, *part.blocks);
    if (part.blocks) last = part.blocks.get();
  }
}

bool get_layout(Reader& in, Layout& layout) {
  std::uint32_t count;
  if (!in.get(count) || count > kPartsMax || count > in.left() / 25) return false;
  std::vector<Part> parts(count);
  std::shared_ptr<const BlockList> last;
  std::uint64_t total = 0;
  std::uint32_t blocks_so_far = 0;
  for (Part& part : parts) {
    std::uint32_t dims;
    if (!in.get(part.base) || !in.get(part.plane) || !in.get(part.piece_bytes) || !in.get(dims)) {
      return false;
    }
    if (dims > kDimsMax || dims > in.left() / 16) return false;
    part.dims.resize(dims);
    for (Dim& dim : part.dims) {
      if (!in.get(dim.count) || !in.get(dim.stride)) return false;
    }
    std::uint8_t blocks;
    if (!in.get(blocks) || blocks > 2) return false;
    if (blocks == 1) {
      std::vector<std::int64_t> list;
      if (!get_blocks(in, kBlocksMax - blocks_so_far, list)) return false;
      blocks_so_far += std::uint32_t(list.size());
      last = std::make_shared<const BlockList>(std::move(list));
    }
    if (blocks != 0) {
      if (!last || part.dims.empty() || part.dims[0].count != last->size()) return false;
      part.blocks = last;
    }
    std::int64_t low, high;
    if (!part.extent(low, high)) return false;
    if (__builtin_add_overflow(total, part.bytes(), &total)) return false;
  }
  layout = Layout(std::move(parts));
  return true;
}

void put_target(Writer& out, const Target& target) {
  out.put(target.segment);
  out.put(target.key);
  out.put(target.epoch);
  put_layout(out, target.layout);
}

bool get_target(Reader& in, Target& target) {
  return in.get(target.segment) && in.get(target.key) && in.get(target.epoch) &&
         get_layout(in, target.layout);
}

bool has_target(MessageKind kind) {
  return kind == MessageKind::Write || kind == MessageKind::Read;
}

bool has_payload(const Message& m) {
  return m.kind == MessageKind::Write || m.kind == MessageKind::ReadData ||
         (m.kind == MessageKind::Offer && m.is_inline);
}

}  // namespace

Body encode(const Message& m) {
  Writer out;
  out.reserve(64 + m.payload.size());
  out.put(m.kind);
  out.put(m.id);
  if (m.kind == MessageKind::Offer) {
    out.put(m.context);
    out.put(m.tag);
    out.put(std::uint8_t(m.is_inline));
  }
  if (m.kind == MessageKind::Accept) out.put(m.meta);
  if (m.kind == MessageKind::Offer || m.kind == MessageKind::Read) {
    out.put(m.meta);
    out.put(m.bytes);
  }
  if (m.kind == MessageKind::Refuse) out.put(m.code);
  if (m.kind == MessageKind::Write) out.put(std::uint8_t(m.has_note));
  if (m.kind == MessageKind::Refuse || m.kind == MessageKind::Write) out.put_bytes(m.text);
  if (has_target(m.kind)) put_target(out, m.target);
  if (has_payload(m)) out.put_bytes(m.payload);
  return out.take();
}

bool decode(std::span<const std::uint8_t> body, Message& m) {
  Reader in(body);
  m = Message{};
  if (!in.get(m.kind) || m.kind < MessageKind::Offer || m.kind > MessageKind::Bye) return false;
  if (!in.get(m.id)) return false;
  if (m.kind == MessageKind::Offer) {
    if (!in.get(m.context) || !in.get(m.tag) || !in.get_bool(m.is_inline)) return false;
  }
  if (m.kind == MessageKind::Accept && !in.get(m.meta)) return false;
  if (m.kind == MessageKind::Offer || m.kind == MessageKind::Read) {
    if (!in.get(m.meta) || !in.get(m.bytes)) return false;
  }
  if (m.kind == MessageKind::Refuse && (!in.get(m.code) || m.code > Code::Unreachable))
    return false;
  if (m.kind == MessageKind::Write && !in.get_bool(m.has_note)) return false;
  if ((m.kind == MessageKind::Refuse || m.kind == MessageKind::Write) && !in.get_bytes(m.text)) {
    return false;
  }
  if (has_target(m.kind) && !get_target(in, m.target)) return false;
  if (has_payload(m) && !in.get_bytes(m.payload)) return false;
  return in.left() == 0;
}

Body encode(const Opening& opening) {
  Writer out;
  out.put(opening.kind);
  out.put(opening.bytes);
  out.put(opening.request);
  out.put(std::uint8_t(opening.has_note));
  out.put_bytes(opening.note);
  if (opening.kind == Opening::Kind::Write) put_target(out, opening.target);
  return out.take();
}

bool decode(std::span<const std::uint8_t> body, Opening& opening) {
  Reader in(body);
  opening = Opening{};
  if (!in.get(opening.kind) || opening.kind < Opening::Kind::Write ||
      opening.kind > Opening::Kind::Send) {
    return false;
  }
  if (!in.get(opening.bytes) || !in.get(opening.request) || !in.get_bool(opening.has_note) ||
      !in.get_bytes(opening.note)) {
    return false;
  }
  if (opening.kind == Opening::Kind::Write && !get_target(in, opening.target)) return false;
  return in.left() == 0;
}

bool well_formed(const FrameHeader& header) {
  if (header.magic != kMagic || header.reserved != 0) return false;
  if ((header.flags & ~(kHasCrc | kAckLater)) != 0) return false;
  if (header.body_bytes > kBodyBytesMax) return false;
  switch (header.kind) {
    case FrameKind::Slice:
      return header.body_bytes > 0 && header.sequence != 0 && header.flow != 0 &&
             header.offset <= UINT64_MAX - header.body_bytes;
    case FrameKind::Open:
      return header.body_bytes > 0 && header.sequence != 0 && header.flow != 0;
    case FrameKind::Control:
      return header.body_bytes > 0 && header.sequence != 0 && header.control != 0;
    case FrameKind::Ping:
      return header.body_bytes == 0 && header.sequence != 0;
    case FrameKind::Ack:
      return header.body_bytes == 0 && header.sequence == 0;
  }
  return false;
}

}  // namespace tent
