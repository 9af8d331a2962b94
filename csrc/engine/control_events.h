// Stage: engine. What the control plane must act on: links to dial, links that went down, peers
// that were lost. Added under the engine lock, taken by one waiting Python thread without it. What
// always holds: at most one "dial" and one "lost" per peer wait between two "rested"; "down", or
// "rested", comes once per link.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>

#include "core/types.h"

namespace tent {

struct ControlEvent {
  enum class Kind : std::uint8_t { Dial, Down, Rested, Lost, Said };
  Kind kind;
  PeerId peer = 0;
  std::uint64_t number = 0;  // Dial: rails mask; Down, Rested: link
  std::string rail;          // Down, Rested
  std::string reason;        // Down, Lost; Said: what people should know
};

class ControlEvents {
 public:
  void add(ControlEvent event);
  // Waits until `until` for at least one. False: closed, there will never be any more.
  bool take(TimeNs until, std::deque<ControlEvent>& out);
  void close();

 private:
  std::mutex mutex_;
  std::condition_variable added_;
  std::deque<ControlEvent> events_;
  bool closed_ = false;
};

}  // namespace tent
