// Stage: scheduler. Delivery-rate estimation per link; see the header for the rules.
#include "core/rail_estimate.h"

#include <utility>

namespace tent {

namespace {
constexpr double kRatePrior = 0.125;  // bytes per ns, until the first sample: 1 Gbit/s
constexpr double kRateMin = 1e-6;     // 1 kB/s: nothing divides by less
constexpr double kProbeGain = 1.25;   // the window leaves room to find out that more would go
constexpr std::uint64_t kAlign = 4096;
constexpr TimeNs kBaseWindow = 5 * kSecond;
constexpr TimeNs kLongSlice = 8 * kMillisecond;  // a link's minimum is not worth more time
constexpr TimeNs kOverdueUnmeasured = 100 * kMillisecond;
}  // namespace

RailEstimate::RailEstimate(const CoreSettings& settings, double rate_hint,
                           std::uint64_t slice_bytes_min, std::uint64_t slice_bytes_max)
    : settings_(settings),
      slice_bytes_max_(slice_bytes_max == 0 ? settings.slice_bytes_max : slice_bytes_max) {
  slice_bytes_min_ = std::min(std::max(slice_bytes_min, settings.slice_bytes_min),
                              std::max(slice_bytes_max_, settings.slice_bytes_min));
  growth_ = 4 * slice_bytes_least();
  current_max_ = rate_hint > 0 ? std::max(rate_hint, kRateMin) : kRatePrior;
}

PostStamp RailEstimate::posted(std::uint64_t bytes, TimeNs now, bool later) {
  if (in_flight_ == 0) first_posted_ = delivered_at_ = now;
  PostStamp stamp;
  stamp.posted = now;
  stamp.first_posted = first_posted_;
  stamp.delivered_at = delivered_at_;
  stamp.delivered = delivered_;
  in_flight_ += bytes;
  stamp.limited = in_flight_ * 2 < window();
  stamp.due = due(now, later ? settings_.ack_delay : 0);
  return stamp;
}

PostStamp RailEstimate::posted_aside(TimeNs now) const {
  PostStamp stamp;
  stamp.posted = now;
  stamp.due = due(now, settings_.ack_delay);
  return stamp;
}

// For what is posted now, after everything in flight; `wait`: how long the answer may be held back.
TimeNs RailEstimate::due(TimeNs now, TimeNs wait) const {
  const TimeNs predicted = eta(0) + wait;
  const TimeNs patience =
      std::max(settings_.overdue_min, TimeNs(settings_.overdue_factor * double(predicted)));
  return now + (measured_ ? patience : std::max(patience, kOverdueUnmeasured));
}

void RailEstimate::acked(const PostStamp& stamp, std::uint64_t bytes, TimeNs now) {
  in_flight_ -= bytes;
  delivered_ += bytes;
  const TimeNs busy = now - std::max(delivered_at_, stamp.posted + base_latency());
  delivered_at_ = now;
  first_posted_ = stamp.posted;
  growth_ = std::min(growth_ + bytes, std::uint64_t(1) << 40);
  // Acknowledgements may come in bunches, posts too: the longer of both intervals is the honest
  // one.
  const TimeNs interval = std::max(now - stamp.delivered_at, stamp.posted - stamp.first_posted);
  if (bytes >= settings_.slice_bytes_min / 2 && interval > 0) {
    learn_rate(double(delivered_ - stamp.delivered) / double(interval), stamp.limited, now);
    learn_steady(bytes, std::max<TimeNs>(busy, 0));
  }
  learn_base(now - stamp.posted, bytes, now);
}

void RailEstimate::learn_rate(double sample, bool limited, TimeNs now) {
  sample = std::max(sample, kRateMin);
  if (!measured_) {  // a hint is not a measurement
    measured_ = true;
    current_max_ = sample;
    previous_max_ = 0;
    rate_bucket_ = now;
    return;
  }
  if (limited && sample <= rate()) return;
  const TimeNs bucket = std::max(4 * settings_.target_delay, 8 * base_latency());
  if (now - rate_bucket_ > bucket) {
    previous_max_ = current_max_;
    current_max_ = 0;
    rate_bucket_ = now;
  }
  current_max_ = std::max(current_max_, sample);
}

void RailEstimate::learn_steady(std::uint64_t bytes, TimeNs busy) {
  steady_bytes_ += double(bytes);
  steady_time_ += double(busy);
  const double kept = double(4 * settings_.target_delay);
  if (steady_time_ <= kept) return;
  steady_bytes_ *= kept / steady_time_;
  steady_time_ = kept;
}

double RailEstimate::steady_rate() const {
  return steady_time_ > 0 ? std::min(rate(), steady_bytes_ / steady_time_) : rate();
}

void RailEstimate::learn_base(TimeNs time, std::uint64_t bytes, TimeNs now) {
  if (now - base_bucket_ > kBaseWindow) {
    quickest_ = std::exchange(quickest_next_, {});
    base_bucket_ = now;
  }
  const Answer answer{time, bytes};
  if (time < quickest_.time) quickest_ = answer;
  if (time < quickest_next_.time) quickest_next_ = answer;
}

std::uint64_t RailEstimate::slice_bytes_least() const {
  const std::uint64_t least = std::min(settings_.slice_bytes_min, slice_bytes_min_);
  if (!measured_) return least;  // it may be slow: nothing long before anything is known of it
  return std::clamp(std::uint64_t(steady_rate() * double(kLongSlice)), least, slice_bytes_min_);
}

std::uint64_t RailEstimate::slice_bytes() const {
  const std::uint64_t least = slice_bytes_least();
  const auto wanted = std::uint64_t(steady_rate() * double(settings_.slice_time));
  const std::uint64_t most = std::min(slice_bytes_max_, growth_ / 4);
  const std::uint64_t bytes = std::clamp(wanted, least, std::max(most, least));
  return bytes > kAlign ? bytes / kAlign * kAlign : bytes;
}

std::uint64_t RailEstimate::window() const {
  // Half more than the rate needs over the round trip: a rate that was measured too low, because
  // the window was small, must not keep it small; and from two slices it takes half more to get
  // three.
  const double delay = double(settings_.target_delay) + 1.5 * double(round_trip());
  const auto wanted = std::uint64_t(std::min(rate(), kProbeGain * steady_rate()) * delay);
  return std::max(std::min(growth_, wanted), 2 * slice_bytes_least());
}

TimeNs RailEstimate::eta(std::uint64_t bytes) const {
  return TimeNs(double(in_flight_ + bytes) / steady_rate()) + base_latency();
}

}  // namespace tent
