// Stage: tests. What a test says to the fake devices, and asks of them: functions for ctypes, each
// under the world's mutex. Any thread. See fake_verbs.cpp.
#include <unistd.h>

#include "fake.h"

using namespace fake;

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Guard = std::lock_guard<std::mutex>;

void tell_event(World& w, int device, ibv::EventType type) {
  for (Opened* context : w.opened) {
    if (context->index != device) continue;
    ibv::AsyncEvent event{};
    event.element.port_num = 1;
    event.event_type = type;
    if (::write(context->event_fd, &event, sizeof event) != sizeof event) std::abort();
  }
}

}  // namespace

EXPORT void fake_reset() {
  Guard guard(world().mutex);
  for (Machine& machine : world().machines) {
    const std::uint64_t registered = machine.registered_bytes;
    machine = {};
    machine.registered_bytes = registered;
  }
  tell_late(world(), Time::max());
  world().gate.notify_all();
  world().retry_s = 0.1;
  world().peer_memory = nullptr;
}
EXPORT void fake_rate(int device, double bytes_per_s, double latency_s) {
  Guard guard(world().mutex);
  world().machines[device].bytes_per_s = bytes_per_s;
  world().machines[device].latency_s = latency_s;
}
EXPORT void fake_cut(int device, int cut) {
  Guard guard(world().mutex);
  world().machines[device].cut = cut != 0;
}
EXPORT void fake_retry(double seconds) {
  Guard guard(world().mutex);
  world().retry_s = seconds;
}
EXPORT void fake_port(int device, int up) {
  Guard guard(world().mutex);
  world().machines[device].port_up = up != 0;
  tell_event(world(), device, up != 0 ? ibv::kEventPortActive : ibv::kEventPortErr);
}
EXPORT void fake_fatal(int device) {
  Guard guard(world().mutex);
  tell_event(world(), device, ibv::kEventDeviceFatal);
}
EXPORT void fake_fail_next(int device, unsigned status) {
  Guard guard(world().mutex);
  world().machines[device].fail_next = status;
}
EXPORT void fake_open(int device, int error) {
  Guard guard(world().mutex);
  world().machines[device].open_errno = error;
}
EXPORT void fake_join_gate(int device, int shut) {
  Guard guard(world().mutex);
  world().machines[device].join_gate = shut != 0;
  world().gate.notify_all();
}
EXPORT void fake_mtu(int device, unsigned mtu) {
  Guard guard(world().mutex);
  world().machines[device].mtu = mtu;
}
EXPORT void fake_carried_max(int device, std::uint64_t bytes) {
  Guard guard(world().mutex);
  world().machines[device].carried_max = bytes;
}
EXPORT void fake_refuse(int device, int error, std::uint64_t above) {
  Guard guard(world().mutex);
  world().machines[device].refuse_errno = error;
  world().machines[device].refuse_above = above;
}
EXPORT void fake_gate(int device, double seconds, int passing) {
  Guard guard(world().mutex);
  Machine& machine = world().machines[device];
  machine.gate_s = seconds;
  machine.passing = passing;
  world().gate.notify_all();
}
EXPORT int fake_waiting(int device) {
  Guard guard(world().mutex);
  return world().machines[device].waiting;
}
EXPORT void fake_room(int device, std::uint64_t bytes) {
  Guard guard(world().mutex);
  Machine& machine = world().machines[device];
  machine.registered_bytes_max = machine.registered_bytes + bytes;
}
EXPORT void fake_lingers(int device, int on) {
  Guard guard(world().mutex);
  world().machines[device].lingers = on != 0;
}
EXPORT void fake_hold(int device, int on) {
  World& w = world();
  Guard guard(w.mutex);
  w.machines[device].hold = on != 0;
  if (on != 0) return;
  for (Queue* queue : w.queues) {
    if (queue->device != device) continue;
    const std::deque<ibv::Wc> held = std::exchange(queue->held, {});
    for (const ibv::Wc& wc : held) tell(queue, wc);
  }
}
EXPORT void fake_late(int device, double seconds, unsigned seed) {
  World& w = world();
  Guard guard(w.mutex);
  w.machines[device].late_s = seconds;
  w.dice.seed(seed);
  tell_late(w, Time::max());  // so that order is kept
  start_clockwork(w);
}
EXPORT std::uint64_t fake_regions() {
  Guard guard(world().mutex);
  return world().regions.size();
}
EXPORT std::uint64_t fake_registrations() {
  Guard guard(world().mutex);
  return world().registrations;
}
EXPORT std::uint64_t fake_messages() {
  Guard guard(world().mutex);
  return world().messages;
}
EXPORT std::uint64_t fake_reads() {
  Guard guard(world().mutex);
  return world().reads;
}
EXPORT std::uint64_t fake_pairs() {
  Guard guard(world().mutex);
  return world().pairs.size();
}
