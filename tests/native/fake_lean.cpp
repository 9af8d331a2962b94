// Stage: tests, called by benchmarks/slice_cost.cpp. Queues of work and completions that cost next
// to nothing, put in the place of the fake devices' own, so that what is measured is our side of
// the call. Work is carried at once: messages are copied, reads move nothing. One thread; no
// allocation after lean_begin().
#include <cstdlib>
#include <cstring>

#include "fake.h"

using namespace fake;

namespace {

constexpr unsigned kRoom = 1u << 12;

template <class Value>
struct Ring {
  Value values[kRoom];
  unsigned first = 0, end = 0;

  void push(const Value& value) { values[end++ % kRoom] = value; }
  bool empty() const { return first == end; }
  const Value& pop() { return values[first++ % kRoom]; }
};

struct Lane {
  Ring<std::pair<std::uint64_t, std::uint64_t>> receives;  // number of the work, address
  ibv::Qp* peer = nullptr;
};

Ring<ibv::Wc>& done_of(ibv::Cq* queue) { return *static_cast<Ring<ibv::Wc>*>(queue->cq_context); }
Lane& lane_of(ibv::Qp* pair) { return *static_cast<Lane*>(pair->qp_context); }

void tell(ibv::Cq* queue, std::uint64_t number, std::uint32_t bytes) {
  ibv::Wc wc{};
  wc.wr_id = number;
  wc.byte_len = bytes;
  done_of(queue).push(wc);
}

int poll_queue(ibv::Cq* queue, int count, ibv::Wc* out) {
  Ring<ibv::Wc>& done = done_of(queue);
  int taken = 0;
  while (taken < count && !done.empty()) out[taken++] = done.pop();
  return taken;
}

int post_send(ibv::Qp* pair, ibv::SendWr* wr, ibv::SendWr**) {
  for (; wr != nullptr; wr = wr->next) {
    if (wr->opcode == ibv::kSend) {
      ibv::Qp* peer = lane_of(pair).peer;
      if (lane_of(peer).receives.empty()) std::abort();
      const auto [number, address] = lane_of(peer).receives.pop();
      const ibv::Sge& from = wr->sg_list[0];
      std::memcpy(reinterpret_cast<void*>(address), reinterpret_cast<const void*>(from.addr),
                  from.length);
      tell(peer->recv_cq, number, from.length);
    }
    if ((wr->send_flags & ibv::kSignaled) != 0) tell(pair->send_cq, wr->wr_id, 0);
  }
  return 0;
}

int post_receive(ibv::Qp* pair, ibv::RecvWr* wr, ibv::RecvWr**) {
  for (; wr != nullptr; wr = wr->next) {
    lane_of(pair).receives.push({wr->wr_id, wr->sg_list[0].addr});
  }
  return 0;
}

}  // namespace

// From here on, for every device that is open and every queue pair that is connected.
extern "C" __attribute__((visibility("default"))) void lean_begin() {
  World& w = world();
  for (Queue* queue : w.queues) queue->cq_context = new Ring<ibv::Wc>;
  for (auto& [number, pair] : w.pairs) pair->qp_context = new Lane;
  for (auto& [number, pair] : w.pairs) {
    lane_of(pair).peer = w.pairs.at(pair->peer);
    for (const Receive& receive : pair->receives) {
      lane_of(pair).receives.push({receive.wr_id, receive.sges[0].addr});
    }
  }
  for (Opened* context : w.opened) {
    context->ops.poll_cq = poll_queue;
    context->ops.post_send = post_send;
    context->ops.post_recv = post_receive;
  }
}
