// Stage: wire. The session's control messages: numbered, reliable and in order over links that come
// and go. What a dead link had not acknowledged is sent again; repeats are dropped; early ones
// wait. Bounded both ways by kControlWindow. Pure; one thread. Owned by Session.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>

#include "core/types.h"
#include "core/wire.h"

namespace tent {

inline constexpr std::uint64_t kControlWindow = 1024;

class ControlStream {
 public:
  struct Entry {
    std::uint64_t number = 0;
    std::shared_ptr<const Body> body;
    TransferId flow = 0;  // whose bytes the message holds
    bool ends = false;    // the flow succeeds when the message has arrived (inline sends)
  };

  // ---- outgoing ----
  void push(std::shared_ptr<const Body> body, TransferId flow, bool ends);
  void replace(TransferId flow, std::shared_ptr<const Body> body);  // what holds the flow's bytes
  // The next message to put on a link, or null: none, or the window is full.
  const Entry* next();
  void sent(std::uint64_t number);          // it is on a link now
  const Entry* lost(std::uint64_t number);  // that link died; null: it had arrived
  std::optional<Entry> acked(std::uint64_t number);

  // ---- incoming ----
  // False: malformed (too far ahead). Afterwards take() gives the messages whose turn it is.
  bool arrived(std::uint64_t number, std::span<const std::uint8_t> body);
  bool take(Body& out);
  bool in_order(std::uint64_t number) const { return number == next_in_ && early_.empty(); }
  void skip() { ++next_in_; }  // the message next_in_ was handled without being stored

 private:
  std::map<std::uint64_t, Entry> entries_;  // not yet acknowledged
  std::set<std::uint64_t> waiting_;         // of these: on no link
  std::uint64_t next_out_ = 1, next_in_ = 1;
  std::map<std::uint64_t, Body> early_;
};

}  // namespace tent
