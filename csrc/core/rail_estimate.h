// Stage: scheduler. What one link is expected to do, learned only from what it delivered: rate,
// base latency, and from them the window, the slice length and when a slice is overdue.
// Pure; time is an argument; one thread. Called by Link for every frame posted, acknowledged, lost.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/settings.h"
#include "core/types.h"

namespace tent {

// The estimator's state when a frame was posted: turns its acknowledgement into a rate sample
// without counting the time the frame queued (the delivery-rate method of BBR, Cardwell et al.
// 2016).
struct PostStamp {
  TimeNs posted = 0, first_posted = 0, delivered_at = 0, due = 0;
  std::uint64_t delivered = 0;
  bool limited = false;  // too little was in flight to measure the link's rate
};

class RailEstimate {
 public:
  // `slice_bytes_min`, `slice_bytes_max`: of this link; 0: the settings' values. On a slow link
  // slices are shorter than its minimum, down to that of the settings: one would take too long.
  RailEstimate(const CoreSettings& settings, double rate_hint, std::uint64_t slice_bytes_min,
               std::uint64_t slice_bytes_max);

  // `later`: its acknowledgement may wait for that of the next.
  PostStamp posted(std::uint64_t bytes, TimeNs now, bool later = false);
  // A small frame whose acknowledgement may wait: it counts as nothing in flight, and its answer
  // says only what the base latency is at most.
  PostStamp posted_aside(TimeNs now) const;
  void acked_aside(const PostStamp& stamp, TimeNs now) { learn_base(now - stamp.posted, 0, now); }
  void acked(const PostStamp& stamp, std::uint64_t bytes, TimeNs now);
  void lost(std::uint64_t bytes) { in_flight_ -= bytes; }  // teaches nothing else

  double rate() const { return std::max(current_max_, previous_max_); }  // bytes per ns
  // The mean over the last busy milliseconds, and at most rate(): what plans and predictions use. A
  // link that begins with a burst (a token bucket that filled up while it rested) promises nothing.
  double steady_rate() const;
  bool measured() const { return measured_; }
  // The quickest answer without the time that its own bytes took: known better with the rate.
  TimeNs base_latency() const {
    if (quickest_.time == kNever) return 0;
    return std::max<TimeNs>(0, quickest_.time - TimeNs(double(quickest_.bytes) / rate()));
  }
  std::uint64_t in_flight() const { return in_flight_; }
  std::uint64_t window() const;
  std::uint64_t slice_bytes() const;
  bool has_room() const { return in_flight_ == 0 || in_flight_ + slice_bytes() <= window(); }
  // How long until `bytes` more would be acknowledged, behind what is in flight.
  TimeNs eta(std::uint64_t bytes) const;

 private:
  void learn_rate(double sample, bool limited, TimeNs now);
  void learn_base(TimeNs time, std::uint64_t bytes, TimeNs now);
  void learn_steady(std::uint64_t bytes, TimeNs busy);
  std::uint64_t slice_bytes_least() const;
  TimeNs due(TimeNs now, TimeNs wait) const;
  TimeNs round_trip() const { return quickest_.time == kNever ? 0 : quickest_.time; }

  const CoreSettings& settings_;
  std::uint64_t slice_bytes_min_, slice_bytes_max_;
  // Two buckets make a windowed maximum (rate) and minimum (base latency).
  double current_max_ = 0, previous_max_ = 0;
  TimeNs rate_bucket_ = 0;
  double steady_bytes_ = 0, steady_time_ = 0;  // delivered, and in how many busy ns
  struct Answer {
    TimeNs time = kNever;
    std::uint64_t bytes = 0;
  };
  Answer quickest_, quickest_next_;
  TimeNs base_bucket_ = 0;
  bool measured_ = false;
  std::uint64_t in_flight_ = 0, delivered_ = 0;
  std::uint64_t growth_;  // slow start: the window may not exceed this
  TimeNs delivered_at_ = 0, first_posted_ = 0;
};

}  // namespace tent
