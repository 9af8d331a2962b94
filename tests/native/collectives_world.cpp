// Stage: tests. Several ranks' Collectives in one process and one thread, on a network that
// delivers in any order: what happens next is drawn from what could happen. Built and driven by
// Python tests. A send ends only when its receive was open and the bytes were copied, or at once
// when the network happens to buffer it; both occur, so that schedules can rely on neither.
#include "collectives.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <utility>

#include "collectives/reduce.h"

namespace {

constexpr std::uint64_t kMine = 1, kTheirs = 2;  // streams: the caller's, those of who computes

using Buffer = std::pair<std::uint64_t, std::uint64_t>;  // address, bytes
using Buffers2 = std::vector<Buffer>;

class World;

class Port final : public Transfers {  // one rank's view of the network
 public:
  Port(World& world, std::int32_t rank) : world_(world), rank_(rank) {}
  TimeNs now() const override;
  TransferId send(PeerId peer, std::uint64_t context, std::uint64_t tag, const Memory& memory,
                  TimeNs expires, Continuation* then) override;
  TransferId recv(PeerId peer, std::uint64_t context, std::uint64_t tag, const Memory& memory,
                  TimeNs expires, Continuation* then) override;
  void after(Device device, std::uint64_t stream, Continuation* then) override;
  void cancel(TransferId id) override;
  void remind(TimeNs when, std::function<void()> then) override;

 private:
  World& world_;
  std::int32_t rank_;
};

class World {
 public:
  World(std::int32_t size, std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, int> tuning,
        std::uint64_t seed)
      : random_(seed) {
    const auto [small, chunk, buffered, direct] = tuning;
    for (std::int32_t rank = 0; rank < size; ++rank) {
      ports_.push_back(std::make_unique<Port>(*this, rank));
      ranks_.push_back(std::make_unique<Collectives>(
          *ports_.back(), Tuning{small, chunk, buffered, std::int32_t(direct)}));
      RankMap map{40, rank, size, {}};
      for (std::int32_t peer = 0; peer < size; ++peer) map.peers.push_back(PeerId(peer));
      groups_.push_back(ranks_.back()->add_group(map));
    }
    dead_.resize(std::size_t(size));
    stopped_.resize(std::size_t(size));
    reminders_.resize(std::size_t(size));
  }

  std::size_t start(std::int32_t rank, std::tuple<int, int, int, int> what, const Buffers2& inputs,
                    const Buffers2& outputs, std::uint64_t tag, std::int64_t timeout_ns) {
    const auto [kind, reduce, dtype, root] = what;
    std::vector<TentBuffer> in, out;
    for (auto [address, bytes] : inputs) in.push_back({address, bytes});
    for (auto [address, bytes] : outputs) out.push_back({address, bytes});
    const std::size_t index = results_.size();
    TentCollectiveCall call{
        kind,       reduce,     dtype, root,       in.data(),          in.size(),
        out.data(), out.size(), tag,   timeout_ns, {TENT_HOST, kMine}, {}};
    if (on_gpu_) send_to_gpu(rank, call);
    results_.push_back({-1, "", 0});
    const CollectiveId id = ranks_[std::size_t(rank)]->start(
        groups_[std::size_t(rank)], call, [this, index](Report report) {
          auto& [code, text, ends] = results_[index];
          code = int(report.status.code);
          text = report.status.text;
          ++ends;
        });
    ids_.push_back({rank, id});
    return index;
  }

  // From now on: what is computed is given away, and happens at some time.
  void compute_elsewhere() { on_gpu_ = true; }
  // The callers' streams do not go on from now on, or do again.
  void hold_streams(bool held) {
    streams_held_ = held;
    if (!held) actions_.insert(actions_.end(), waiting_streams_.begin(), waiting_streams_.end());
    if (!held) waiting_streams_.clear();
  }

  // Does one of the things that can happen; false when there is none.
  bool step() {
    if (actions_.empty()) return false;
    const std::size_t chosen =
        std::uniform_int_distribution<std::size_t>(0, actions_.size() - 1)(random_);
    std::swap(actions_[chosen], actions_.back());
    Action action = std::move(actions_.back());
    actions_.pop_back();
    if (action.matched != nullptr)
      deliver(action.message, action.matched);
    else if (action.step.bytes > 0)
      compute(action.message->rank, action.step);
    else if (!dead_[std::size_t(action.message->rank)])
      action.message->then->ended(action.message->id, action.report);
    return true;
  }
  std::size_t run(std::size_t steps_max) {
    std::size_t steps = 0;
    while (steps < steps_max && step()) ++steps;
    return steps;
  }

  std::tuple<int, std::string, int> result(std::size_t index) const { return results_[index]; }
  std::size_t open_messages() const {  // without those of the dead, and open ears for notices
    std::size_t count = 0;
    for (const MessageRef& m : open_)
      count += !m->ended && !dead_[std::size_t(m->rank)] && !(m->peer < 0 && !m->is_send);
    return count;
  }
  std::size_t lingering(std::int32_t rank) const { return ranks_[std::size_t(rank)]->lingering(); }
  void cancel_call(std::size_t index) {
    ranks_[std::size_t(ids_[index].first)]->cancel(ids_[index].second);
  }
  void abort(std::int32_t rank, const std::string& why) {
    ranks_[std::size_t(rank)]->abort(groups_[std::size_t(rank)], why);
  }
  void remove_group(std::int32_t rank) {
    ranks_[std::size_t(rank)]->remove_group(groups_[std::size_t(rank)]);
  }
  // The rank never does anything again; whoever has a transfer with it is told so.
  void kill(std::int32_t rank) {
    dead_[std::size_t(rank)] = true;
    const std::list<MessageRef> open = open_;
    for (const MessageRef& m : open) {
      if (m->rank == rank)
        withdraw(m);
      else if (m->peer == rank)
        end(m, {Code::PeerLost, "its process ended", ""});
    }
  }
  // The rank does nothing any more, and nobody is told.
  void stop(std::int32_t rank) {
    dead_[std::size_t(rank)] = stopped_[std::size_t(rank)] = true;
    const std::list<MessageRef> open = open_;
    for (const MessageRef& m : open)
      if (m->rank == rank) withdraw(m);
  }
  // Time passes from one reminder to the next; between them happens what can happen.
  void expire(TimeNs time) {
    for (;;) {
      const auto first =
          std::min_element(reminders_.begin(), reminders_.end(),
                           [](const auto& a, const auto& b) { return a.when < b.when; });
      if (first->when > time) break;
      pass(first->when);
      const auto then = std::exchange(*first, {}).then;
      if (!dead_[std::size_t(first - reminders_.begin())]) then();
      while (step()) {
      }
    }
    pass(time);
  }
  void pass(TimeNs time) {
    now_ = time;
    const std::list<MessageRef> open = open_;
    for (const MessageRef& m : open)
      if (m->expires <= now_ && !m->ended) end(m, {Code::Timeout, "too late", ""});
  }

  void post(MessageRef message) {
    const auto peer = std::size_t(message->peer);
    if (message->peer >= 0 && dead_[peer] && !stopped_[peer]) {
      open_.push_back(message);
      return end(message, {Code::PeerLost, "its process ended", ""});
    }
    open_.push_back(message);
    if (message->is_send && !stopped_[peer] && std::bernoulli_distribution(0.3)(random_)) {
      const auto* from = reinterpret_cast<const std::uint8_t*>(message->address);
      message->buffered.assign(from, from + message->bytes);
      tell(message, {});
    }
    match(message);
  }
  // A stream comes so far at some time.
  void after(std::int32_t rank, std::uint64_t stream, Continuation* then) {
    auto& where = stream == kMine && streams_held_ ? waiting_streams_ : actions_;
    where.push_back({owner_of(rank, then), nullptr, {}, {}});
  }
  void cancel(TransferId id) {
    for (const MessageRef& m : open_)
      if (m->id == id && !m->ended) return end(MessageRef(m), {Code::Cancelled, "cancelled", ""});
  }
  void remind(std::int32_t rank, TimeNs when, std::function<void()> then) {
    reminders_[std::size_t(rank)] = {when, std::move(then)};
  }
  TransferId next_id() { return ++last_id_; }
  TimeNs now() const { return now_; }

 private:
  struct Reminder {
    TimeNs when = kNever;
    std::function<void()> then;
  };
  struct Action {
    MessageRef message, matched;  // matched: copy from the send `message` to it
    Report report;                // else: tell the owner
    TentStep step{};              // else: compute
  };
  struct Gpu {
    World* world;
    std::int32_t rank;
  };

  void send_to_gpu(std::int32_t rank, TentCollectiveCall& call) {
    call.place.device = 0;
    const auto start = [](void* context, const TentStep* step) {
      const auto* gpu = static_cast<Gpu*>(context);
      gpu->world->actions_.push_back({gpu->world->owner_of(gpu->rank), nullptr, {}, *step});
    };
    const std::uint64_t bytes =
        ranks_[std::size_t(rank)]->scratch_bytes(groups_[std::size_t(rank)], call);
    gpu_memory_.emplace_back(bytes);
    gpus_.push_back({this, rank});
    const auto address = reinterpret_cast<std::uint64_t>(gpu_memory_.back().data());
    call.compute = {&gpus_.back(), start, {address, bytes}};
  }
  void compute(std::int32_t rank, const TentStep& step) {
    if (dead_[std::size_t(rank)]) return;
    do_step(step);
    ranks_[std::size_t(rank)]->computed(step, kTheirs, {});
  }
  static MessageRef owner_of(std::int32_t rank, Continuation* then = nullptr) {
    OpenMessage nobody{};
    nobody.rank = rank;
    nobody.then = then;
    return std::make_shared<OpenMessage>(std::move(nobody));
  }

  void match(const MessageRef& message) {
    for (const MessageRef& other : waiting_) {
      const bool fit = message->is_send ? fits(*message, *other) : fits(*other, *message);
      if (!fit) continue;
      const MessageRef found = other;
      waiting_.remove(found);
      actions_.push_back(message->is_send ? Action{message, found, {}}
                                          : Action{found, message, {}});
      return;
    }
    waiting_.push_back(message);
  }
  void deliver(const MessageRef& send, const MessageRef& recv) {
    if (send->bytes != recv->bytes) {
      const Status wrong{Code::Mismatch, "the two ends disagree on bytes", ""};
      end(send, wrong);
      return end(recv, wrong);
    }
    const void* from =
        send->buffered.empty() ? reinterpret_cast<void*>(send->address) : send->buffered.data();
    if (recv->bytes > 0) std::memcpy(reinterpret_cast<void*>(recv->address), from, recv->bytes);
    end(send, {});
    end(recv, {});
  }
  void tell(const MessageRef& m, Status status) {
    if (m->ended) return;
    m->ended = true;
    Report report;
    report.id = m->id;
    report.status = std::move(status);
    actions_.push_back({m, nullptr, std::move(report)});
  }
  // Takes the message out of the network. Its partner, if it had one, waits again.
  void withdraw(const MessageRef& m) {
    open_.remove(m);
    waiting_.remove(m);
    for (std::size_t i = 0; i < actions_.size(); ++i) {
      if (actions_[i].matched == nullptr) continue;
      if (actions_[i].message != m && actions_[i].matched != m) continue;
      const MessageRef partner =
          actions_[i].message == m ? actions_[i].matched : actions_[i].message;
      actions_.erase(actions_.begin() + std::ptrdiff_t(i));
      match(partner);
      return;
    }
  }
  void end(const MessageRef& m, Status status) {
    withdraw(m);
    tell(m, std::move(status));
  }

  std::mt19937_64 random_;
  TimeNs now_ = 1;
  TransferId last_id_ = 0;
  std::list<MessageRef> open_, waiting_;
  std::vector<Action> actions_, waiting_streams_;
  bool on_gpu_ = false, streams_held_ = false;
  std::deque<Gpu> gpus_;
  std::deque<std::vector<std::uint8_t>> gpu_memory_;
  std::vector<Reminder> reminders_;   // by rank
  std::vector<bool> dead_, stopped_;  // whoever is stopped is dead, too
  std::vector<std::tuple<int, std::string, int>> results_;
  std::vector<std::pair<std::int32_t, CollectiveId>> ids_;
  std::vector<std::unique_ptr<Port>> ports_;
  std::vector<std::unique_ptr<Collectives>> ranks_;
  std::vector<GroupId> groups_;
};

TimeNs Port::now() const { return world_.now(); }

TransferId Port::send(PeerId peer, std::uint64_t context, std::uint64_t tag, const Memory& memory,
                      TimeNs expires, Continuation* then) {
  const TransferId id = world_.next_id();
  world_.post(std::make_shared<OpenMessage>(OpenMessage{id,
                                                        rank_,
                                                        std::int32_t(peer),
                                                        true,
                                                        context,
                                                        tag,
                                                        memory.address,
                                                        memory.bytes,
                                                        expires,
                                                        then,
                                                        {}}));
  return id;
}

TransferId Port::recv(PeerId peer, std::uint64_t context, std::uint64_t tag, const Memory& memory,
                      TimeNs expires, Continuation* then) {
  const TransferId id = world_.next_id();
  const std::int32_t from = peer == kAnyPeer ? -1 : std::int32_t(peer);
  world_.post(std::make_shared<OpenMessage>(OpenMessage{
      id, rank_, from, false, context, tag, memory.address, memory.bytes, expires, then, {}}));
  return id;
}

void Port::after(Device, std::uint64_t stream, Continuation* then) {
  world_.after(rank_, stream, then);
}

void Port::cancel(TransferId id) { world_.cancel(id); }

void Port::remind(TimeNs when, std::function<void()> then) {
  world_.remind(rank_, when, std::move(then));
}

}  // namespace

PYBIND11_MODULE(collectives_world, m) {
  py::class_<World>(m, "World")
      .def(py::init<std::int32_t, std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, int>,
                    std::uint64_t>())
      .def("start", &World::start)
      .def("step", &World::step)
      .def("compute_elsewhere", &World::compute_elsewhere)
      .def("hold_streams", &World::hold_streams)
      .def("run", &World::run)
      .def("result", &World::result)
      .def("open_messages", &World::open_messages)
      .def("lingering", &World::lingering)
      .def("cancel", &World::cancel_call)
      .def("abort", &World::abort)
      .def("remove_group", &World::remove_group)
      .def("kill", &World::kill)
      .def("stop", &World::stop)
      .def("expire", &World::expire);
  m.def("plan", &planned);
  m.def("why_not", &why_not);
  m.def("combine", [](int reduce, int dtype, std::uint64_t to, std::uint64_t left,
                      std::uint64_t right, std::uint64_t bytes) {
    combine(reduce, dtype, reinterpret_cast<void*>(to), reinterpret_cast<void*>(left),
            reinterpret_cast<void*>(right), bytes);
  });
  m.def("divide", [](int dtype, std::uint64_t to, std::uint64_t bytes, int by) {
    divide(dtype, reinterpret_cast<void*>(to), bytes, by);
  });
}
