// Stage: transport. What a link's parts share: its state, and the non-blocking stream of bytes
// below its frames, a socket or a pair of rings. Engine lock held. What always holds: once `closed`
// or `fault` is set nothing more is read, written or copied.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <string>
#include <utility>

#include "core/types.h"

namespace tent {

struct LinkState {
  LinkId id = 0;
  bool closed = false;  // by us: a Receiver call may do it at any time
  bool later = false;   // the Receiver had no memory for what has come: it is asked again
  Status fault;         // the first thing that went wrong; the transport drops the link for it

  bool live() const { return !closed && fault.ok(); }
  // Returns false, for `return link.broke("...")` where false stops the reader.
  bool broke(std::string text, Code code = Code::Failed) {
    if (fault.ok()) fault = Status{code, std::move(text), {}};
    return false;
  }
};

class ByteStream {
 public:
  virtual ~ByteStream() = default;
  // Bytes moved; 0: it would block; -1: the stream is broken and the link's fault says why.
  virtual std::ptrdiff_t write_some(const iovec* parts, int count) = 0;
  virtual std::ptrdiff_t read_some(const iovec* parts, int count) = 0;
};

// How much of a slice's line is asked for at a time, so that a layout of tiny pieces does not make
// a list of a million of them.
class Bite {
 public:
  static constexpr std::uint64_t kMax = 1u << 20, kMin = 4u << 10;

  explicit Bite(std::size_t pieces_max) : pieces_max_(pieces_max) {}
  // Where large pieces cost no more than small ones it may be more than kMax.
  void allow(std::uint64_t bytes) { bytes_max_ = bytes; }
  std::uint64_t bytes() const { return bytes_; }
  void learn(std::size_t pieces) {
    if (pieces > pieces_max_ && bytes_ > kMin) bytes_ /= 2;
    if (pieces < pieces_max_ / 4 && bytes_ < bytes_max_) bytes_ *= 2;
  }

 private:
  std::size_t pieces_max_;
  std::uint64_t bytes_ = kMax, bytes_max_ = kMax;
};

}  // namespace tent
