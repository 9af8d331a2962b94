// Stage: engine. How long a peer has left us without an answer. It counts while something waits
// for the peer and it was spoken to: time in which this process was stopped itself, so that nobody
// asked, is not the peer's silence. Pure; one thread. Owned by Session.
#pragma once

#include <algorithm>

#include "core/types.h"

namespace tent {

class Silence {
 public:
  void heard(TimeNs now) {
    heard_ = now;
    spoken_ = kNever;
  }
  // Something was sent that the peer answers, or it was called on a rail.
  void spoke(TimeNs now) {
    if (spoken_ == kNever) spoken_ = now;
  }
  void wanted(TimeNs now) { wanted_ = now; }
  TimeNs wanted_since() const { return wanted_; }

  // `asked_within`: how soon an idle peer is spoken to once it is wanted.
  TimeNs lasts(TimeNs now, TimeNs asked_within) const {
    if (spoken_ == kNever) return 0;
    return now - std::max({heard_, wanted_, spoken_ - asked_within});
  }

 private:
  TimeNs heard_ = 0, wanted_ = 0, spoken_ = kNever;
};

}  // namespace tent
