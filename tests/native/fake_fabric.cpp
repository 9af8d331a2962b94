// Stage: tests. What the fake devices do with the work that is posted to them. Under the world's
// mutex; what takes time is carried by a thread of its own. What always holds: as in hardware, the
// work of a queue pair is done in order, keys are checked, and an error ends the pair.
#include <unistd.h>

#include <cstring>
#include <thread>

#include "fake.h"

namespace fake {
namespace {

const Region* region_of(const World& w, std::uint32_t key) {
  for (const Region* region : w.regions) {
    if (region->lkey == key) return region;
  }
  return nullptr;
}

bool allowed(const World& w, std::uint32_t key, std::uint64_t at, std::uint64_t bytes, int right) {
  const Region* region = region_of(w, key);
  if (region == nullptr || (right != 0 && (region->rights & right) == 0)) return false;
  const auto begin = reinterpret_cast<std::uint64_t>(region->addr);
  return at >= begin && bytes <= region->length && at - begin <= region->length - bytes;
}

bool scatter(const World& w, const std::vector<ibv::Sge>& sges, const std::uint8_t* from,
             std::uint64_t bytes) {
  for (const ibv::Sge& sge : sges) {
    const std::uint64_t part = std::min<std::uint64_t>(sge.length, bytes);
    if (part == 0) break;
    if (!allowed(w, sge.lkey, sge.addr, part, ibv::kLocalWrite)) return false;
    std::uint8_t* to = bytes_at(w, sge.lkey, sge.addr);
    if (to != nullptr) std::memcpy(to, from, part);
    from += part;
    bytes -= part;
  }
  return bytes == 0;
}

bool gather(const World& w, const Work& work, std::vector<std::uint8_t>& out) {
  if (!work.carried.empty()) {
    out = work.carried;
    return true;
  }
  for (const ibv::Sge& sge : work.sges) {
    if (!allowed(w, sge.lkey, sge.addr, sge.length, 0)) return false;
    const std::uint8_t* data = bytes_at(w, sge.lkey, sge.addr);
    if (data == nullptr) return false;
    out.insert(out.end(), data, data + sge.length);
  }
  return true;
}

}  // namespace

std::uint8_t* bytes_at(const World& w, std::uint32_t key, std::uint64_t address) {
  const Region* region = region_of(w, key);
  if (region == nullptr || region->shadow == nullptr) {
    return reinterpret_cast<std::uint8_t*>(address);
  }
  const int device = static_cast<const Opened*>(region->context)->index;
  if (w.machines[device].misses_gpus) return nullptr;
  return region->shadow + (address - reinterpret_cast<std::uint64_t>(region->addr));
}

namespace {

// One of its sends or receives has ended. As in hardware, the ends of each come in order, and no
// order is kept between two pairs.
void complete(World& w, Pair& pair, bool send, std::uint64_t wr_id, std::uint32_t status,
              std::uint64_t bytes) {
  ibv::Wc wc{};
  wc.wr_id = wr_id;
  wc.status = ibv::WcStatus(status);
  wc.byte_len = std::uint32_t(bytes);
  wc.qp_num = pair.qp_num;
  auto* queue = static_cast<Queue*>(send ? pair.send_cq : pair.recv_cq);
  const Machine& machine = w.machines[queue->device];
  if (machine.hold) {
    queue->held.push_back(wc);
  } else if (machine.late_s > 0) {
    const Seconds wait(std::uniform_real_distribution<>(0, machine.late_s)(w.dice));
    Time& last = send ? pair.sends_told : pair.receives_told;
    last = std::max(last, Clock::now() + std::chrono::duration_cast<Clock::duration>(wait));
    queue->late.emplace(last, wc);
  } else {
    tell(queue, wc);
  }
}

void fail(World& w, Pair& pair, std::uint32_t status) {
  complete(w, pair, true, pair.sends.front().wr.wr_id, status, 0);
  pair.sends.pop_front();
  pair.now = ibv::kErr;
  flush(w, pair);
}

// The front of its sends goes to the peer. 0: done; 1: nobody takes it now; else the error.
std::uint32_t deliver(World& w, Pair& pair, Work& work) {
  const auto found = w.pairs.find(pair.peer);
  if (found == w.pairs.end()) return 1;
  Pair& peer = *found->second;
  const bool hears = peer.now == ibv::kRtr || peer.now == ibv::kRts;
  const Machine &here = w.machines[pair.device], &there = w.machines[peer.device];
  if (!hears || peer.peer != pair.qp_num || here.cut || there.cut || !here.port_up ||
      !there.port_up) {
    return 1;
  }
  // Packets that are too large for a port on the way get lost, and nobody is told.
  if (pair.mtu != peer.mtu || pair.mtu > here.mtu || pair.mtu > there.mtu ||
      work.bytes > std::min(here.carried_max, there.carried_max)) {
    return 1;
  }
  if (work.wr.opcode == ibv::kRdmaRead) {
    const auto& from = work.wr.wr.rdma;
    if (!allowed(w, from.rkey, from.remote_addr, work.bytes, ibv::kRemoteRead)) {
      peer.now = ibv::kErr;
      flush(w, peer);
      return ibv::kWcRemoteAccess;
    }
    const std::uint8_t* data = bytes_at(w, from.rkey, from.remote_addr);
    const std::vector<std::uint8_t> nothing(data == nullptr ? work.bytes : 0);
    if (data == nullptr) data = nothing.data();  // as where a GPU's memory is not reached
    return scatter(w, work.sges, data, work.bytes) ? 0 : kLocalProtection;
  }
  if (peer.receives.empty()) return 1;
  std::vector<std::uint8_t> data;
  if (!gather(w, work, data)) return kLocalProtection;
  const Receive receive = std::move(peer.receives.front());
  peer.receives.pop_front();
  if (!scatter(w, receive.sges, data.data(), data.size())) return ibv::kWcRemoteAccess;
  complete(w, peer, false, receive.wr_id, 0, data.size());
  return 0;
}

void run_clockwork() {
  World& w = world();
  std::unique_lock lock(w.mutex);
  for (;;) {
    w.changed.wait_for(lock, std::chrono::microseconds(100));
    carry_all(w);
  }
}

}  // namespace

World& world() {
  static World* made = new World;
  return *made;
}

void start_clockwork(World& w) {
  if (!std::exchange(w.clockwork, true)) std::thread(run_clockwork).detach();
}

void tell(Queue* queue, const ibv::Wc& wc) {
  queue->done.push_back(wc);
  if (!queue->armed) return;
  queue->armed = false;
  auto* channel = static_cast<Channel*>(queue->channel);
  if (::write(channel->write_fd, &queue, sizeof queue) != sizeof queue) std::abort();
}

void flush(World& w, Pair& pair) {
  for (Work& work : pair.sends) {
    complete(w, pair, true, work.wr.wr_id, ibv::kWcFlushed, 0);
  }
  for (const Receive& receive : pair.receives) {
    complete(w, pair, false, receive.wr_id, ibv::kWcFlushed, 0);
  }
  pair.sends.clear();
  pair.receives.clear();
}

bool carry(World& w, Pair& pair) {
  bool moved = false;
  while (pair.now == ibv::kRts && !pair.sends.empty()) {
    Work& work = pair.sends.front();
    const Time now = Clock::now();
    if (work.ready > now) {
      start_clockwork(w);
      break;
    }
    Machine& machine = w.machines[pair.device];
    std::uint32_t result = std::exchange(machine.fail_next, 0);
    if (result == 0) result = deliver(w, pair, work);
    if (result == 1) {  // the device tries again, until it has had enough
      if (work.stuck_since == Time{}) work.stuck_since = now;
      if (Seconds(now - work.stuck_since).count() < w.retry_s) break;
      result = ibv::kWcRetryExceeded;
    }
    moved = true;
    if (result != 0) {
      fail(w, pair, result);
      break;
    }
    if ((work.wr.send_flags & ibv::kSignaled) != 0) {
      complete(w, pair, true, work.wr.wr_id, 0, work.bytes);
    }
    pair.sends.pop_front();
  }
  return moved;
}

void tell_late(World& w, Time until) {
  for (Queue* queue : w.queues) {
    auto& late = queue->late;
    for (; !late.empty() && late.begin()->first <= until; late.erase(late.begin())) {
      tell(queue, late.begin()->second);
    }
  }
}

void carry_all(World& w) {
  tell_late(w, Clock::now());
  for (bool moved = true; moved;) {
    moved = false;
    for (auto& [number, pair] : w.pairs) moved |= carry(w, *pair);
  }
}

}  // namespace fake
