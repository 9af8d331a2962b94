// Stage: engine. See engine.h. Waiting is in engine_wait.cpp.
#include "engine/engine.h"

#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <stdexcept>
#include <system_error>
#include <thread>

#include "engine/clock.h"
#include "engine/works.h"

namespace tent {
namespace {

constexpr TimeNs kGoodbye = 20 * kMillisecond;   // for what was sent last to leave this process
constexpr TimeNs kParting = 300 * kMillisecond;  // for the peers to let go of what is stopped
constexpr TimeNs kLinger = 5 * kSecond;          // for the last messages of ended collectives
constexpr TimeNs kLingerPause = 100 * kMicrosecond;
constexpr int kEndRounds = 100;

const Status kClosed{Code::Cancelled, "the engine was closed while the transfer ran", ""};

}  // namespace

Engine::WaitSet::WaitSet() : fd(epoll_create1(EPOLL_CLOEXEC)) {
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "the engine's epoll set");
}

Engine::WaitSet::~WaitSet() { ::close(fd); }

Engine::Engine(const EngineSettings& settings)
    : exchange_(settings, wait_set_.fd, events_),
      fork_guard_(lock_, exchange_),
      progress_(wait_set_.fd, lock_, exchange_, notifier_, wheel_),
      works_(std::make_unique<TentEngine>(*this, exchange_)) {}

Engine::~Engine() { close(); }

const TentApi* Engine::c_api() const { return &works_->api; }

std::shared_ptr<Engine> Engine::make(const EngineSettings& settings) {
  return std::shared_ptr<Engine>(new Engine(settings), [](Engine* engine) {
    if (!engine->forked()) delete engine;
  });
}

void Engine::check() const {
  if (forked()) {
    throw std::runtime_error(
        "this engine was made before fork() and does not work in the child: make a new one there, "
        "or start the process with the spawn or forkserver method");
  }
  if (closed_) throw std::runtime_error("the engine is closed");
}

Held Engine::hold() {
  check();
  lock_.lock();
  open_or_throw();
  return Held(lock_, exchange_, notifier_, std::adopt_lock);
}

bool Engine::try_hold(std::optional<Held>& held) {
  check();
  if (!lock_.try_lock()) return false;
  open_or_throw();
  held.emplace(lock_, exchange_, notifier_, std::adopt_lock);
  return true;
}

// Whoever gets the lock after close() had it must find the door shut.
void Engine::open_or_throw() {
  if (!closed_) return;
  lock_.unlock();
  check();
}

PeerId Engine::add_peer(const std::string& name) {
  Held held = hold();
  std::erase_if(peers_, [&](PeerId peer) { return !held->node().alive(peer); });
  const PeerId peer = held->node().add_peer(name);
  peers_.push_back(peer);
  return peer;
}

void Engine::add_link(PeerId peer, const LinkInfo& info, const Connection& connection) {
  Status status;
  bool taken_over = false;
  try {
    Held held = hold();
    taken_over = true;
    status = held->connect(peer, info, connection);
    // It may sleep deaf to this kind of link, and there may be something to send, or come already.
    progress_.take_over(true);
  } catch (...) {
    if (!taken_over) {
      for (const int fd : connection.fds) ::close(fd);
    }
    throw;
  }
  if (status.ok()) return;
  throw std::runtime_error("rail " + info.rail + " to peer " + std::to_string(peer) +
                           " has no link: " + status.text);
}

void Engine::close() {
  if (forked()) return;
  linger();
  if (closed_.exchange(true)) return;
  end_everything();
  events_.close();
  progress_.stop();
  notifier_.stop();
}

// The first message to a rank waits for a link to it, which the control plane makes meanwhile: so
// the lock is free between two looks. Ranks that are lost are not waited for.
void Engine::linger() {
  for (const TimeNs until = now_ns() + kLinger; now_ns() < until;) {
    try {
      Held held = hold();
      held->poll(now_ns());
      if (works_->collectives.lingering() == 0) return;
    } catch (const std::runtime_error&) {  // another thread has closed it
      return;
    }
    std::this_thread::sleep_for(std::chrono::nanoseconds(kLingerPause));
  }
}

// Whether the peers have acknowledged all that was sent: closing a link throws away what it still
// holds, and a goodbye that gets lost costs the peer a timeout.
bool Engine::said_everything(Held& held) {
  held->poll(now_ns());
  const NodeStats stats = held->node().stats();
  return works_->collectives.lingering() == 0 &&
         std::all_of(stats.links.begin(), stats.links.end(),
                     [](const LinkStats& link) { return link.in_flight == 0; });
}

// Stops what goes on, and gives it the time to end: that is when the peers have forgotten it. Its
// memory is the caller's again after close(), and a peer may be copying out of it.
void Engine::stop_everything(Held& held) {
  const std::vector<TransferId> stopped = held->operations.ids();
  for (const TransferId id : stopped) held->cancel(id);
  // By number: what listens for notices begins anew whenever it is stopped.
  const TransferId last = stopped.empty() ? 0 : *std::max_element(stopped.begin(), stopped.end());
  for (const TimeNs until = now_ns() + kParting; now_ns() < until; sched_yield()) {
    held->settle();
    const std::vector<TransferId> left = held->operations.ids();
    if (std::none_of(left.begin(), left.end(), [&](auto id) { return id <= last; })) return;
    held->poll(now_ns());
  }
}

void Engine::end_everything() {
  Held held(lock_, exchange_, notifier_);
  const auto say_all = [&] {
    const TimeNs until = now_ns() + kGoodbye;
    while (!said_everything(held) && now_ns() < until) sched_yield();
  };
  say_all();
  stop_everything(held);
  held->node().say_bye(now_ns());
  held->settle();
  say_all();
  for (const PeerId peer : peers_) {
    if (held->node().alive(peer)) held->node().lose_peer(peer, kClosed, now_ns());
  }
  held->end_copies();
  held->settle();
  // Collectives may begin their next step when one fails; the second round ends that too.
  for (int round = 0; round < kEndRounds && held->operations.outstanding() != 0; ++round) {
    for (const TransferId id : held->operations.ids()) {
      Report report;
      report.id = id;
      report.status = kClosed;
      held->operations.finish(std::move(report));
    }
    held->settle();
  }
  held->rdma.close_all();
  held->rdma.memory.keep_nothing();
  held->operations.tell_late();
  held->bells.ring_all(held->operations.aftermath());
}

}  // namespace tent
