// Stage: engine. Exchange, what concerns memory of GPUs: transfers that wait for the caller's
// stream, copies that end, frames and reports that waited for them. Under the engine lock.
#include <sched.h>

#include <stdexcept>

#include "engine/clock.h"
#include "engine/exchange.h"

namespace tent {
namespace {
constexpr TimeNs kLastCopies = 10 * kSecond;
}

Status Exchange::open_device(Device device) {
  if (!devices_) devices_ = std::make_unique<DeviceStage>(node_, checksum_, wait_set_);
  return devices_->open(device);
}

// The transfer touches its memory only after what its stream has queued until now.
void Exchange::order(Request& request) {
  const Device device = request.local.device();
  Status status = open_device(device);
  CopyId mark = 0;
  if (status.ok()) status = devices_->copies.mark(device, request.local.stream(), mark);
  if (!status.ok()) throw std::runtime_error(status.text);
  if (mark == 0) return;
  request.held = true;
  devices_->marks.emplace(mark, request.id);
}

bool Exchange::poll_devices() {
  DeviceStage& devices = *devices_;
  devices.alarm.hush();
  std::vector<DeviceCopies::Ended> ended;
  devices.copies.poll(ended);
  const TimeNs now = now_ns();
  for (const auto& [id, status] : ended) {
    const TransferId flow = devices.out.flow_of(id);
    if (devices.out.copied(id, status)) {
      if (!status.ok()) node_.source_failed(flow, status, now);
    } else if (!devices.in.copied(id, status, now)) {
      const auto mark = devices.marks.find(id);
      status.ok() ? node_.release(mark->second, now) : node_.fail(mark->second, status, now);
      devices.marks.erase(mark);
    }
  }
  devices.in.advance();
  std::vector<std::pair<LinkId, Frame>> ready;
  std::vector<std::pair<TransferId, Status>> failed;
  devices.out.advance(ready, failed);
  for (auto& [link, frame] : ready) {
    if (Port* to = port(link)) {
      to->transport->post(link, std::move(frame));
      to->transport->send(link, *this);
    }
  }
  for (const auto& [flow, status] : failed) node_.source_failed(flow, status, now);
  std::erase_if(copying_, [&](Report& report) {
    if (devices.copying(report.id)) return false;
    ended_.push_back(std::move(report));
    return true;
  });
  const bool moved = !ended.empty() || !ready.empty() || !failed.empty();
  if (moved) stir();
  return moved;
}

void Exchange::place(PeerId peer, TransferId flow, const Layout& to, const Body& bytes) {
  if (devices_) devices_->in.place(peer, flow, to, bytes);
}

bool Exchange::copying_in(PeerId peer, TransferId flow) const {
  return devices_ && devices_->in.placing(peer, flow);
}

bool Exchange::copying(SegmentId segment) const {
  return devices_ &&
         (devices_->out.copying_segment(segment) || devices_->in.copying_segment(segment));
}

void Exchange::end_copies() {
  if (!devices_) return;
  const TimeNs until = now_ns() + kLastCopies;
  while (devices_->copies.running() != 0 && now_ns() < until) {
    poll_devices();
    sched_yield();
  }
  poll_devices();
  if (devices_->copies.running() == 0) devices_.reset();
}

}  // namespace tent
