// Stage: transport. What has been read from a byte stream and not yet understood: a small private
// copy, so that a peer that shares the memory below cannot change a header after it was checked.
// Owned by one link's FrameReader; engine lock held.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "transports/byte_stream.h"

namespace tent {

class ReadAhead {
 public:
  static constexpr std::size_t kBytes = 4096;

  ReadAhead(LinkState& link, ByteStream& stream) : link_(link), stream_(stream) {}

  const std::uint8_t* data() const { return bytes_.data() + begin_; }
  std::size_t size() const { return end_ - begin_; }
  void skip(std::size_t bytes) {
    begin_ += bytes;
    if (begin_ == end_) begin_ = end_ = 0;
  }

  // Whether `bytes` <= kBytes lie at data(), after a read if there is a point in one.
  bool need(std::size_t bytes) {
    if (size() >= bytes) return true;
    if (begin_ + bytes > kBytes) {
      std::memmove(bytes_.data(), data(), size());
      end_ -= begin_;
      begin_ = 0;
    }
    const iovec rest = spare();
    const std::ptrdiff_t got = read(&rest, 1, rest.iov_len);
    if (got > 0) end_ += std::size_t(got);
    return size() >= bytes;
  }

  // Reads past this buffer, which must be empty. `wanted`: the bytes in `parts`, whose last part
  // may be spare(); what lands there is declared with added().
  std::ptrdiff_t read(const iovec* parts, int count, std::size_t wanted) {
    if (dry_) return 0;
    const std::ptrdiff_t got = stream_.read_some(parts, count);
    dry_ = got < 0 || std::size_t(got) < wanted;
    return link_.live() ? got : -1;
  }
  iovec spare() { return {bytes_.data() + end_, kBytes - end_}; }
  void added(std::size_t bytes) { end_ += bytes; }

  // The last read got less than it asked for: another one now would be in vain.
  bool dry() const { return dry_; }
  void refreshed() { dry_ = false; }
  void hold() { dry_ = true; }  // until refreshed(), nothing is read

 private:
  LinkState& link_;
  ByteStream& stream_;
  std::size_t begin_ = 0, end_ = 0;
  bool dry_ = false;
  std::array<std::uint8_t, kBytes> bytes_;
};

}  // namespace tent
