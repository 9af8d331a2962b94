// Stage: tests. Two engines in one process and many threads that do everything at once: messages,
// one-sided writes with notices, cancels, timeouts, callbacks, shareable memory, statistics, links
// that go and come. Every byte of every success is checked.
// Called by tests/test_engine_stress.py: engine_stress SECONDS SEED; best under a sanitizer.
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/shared_memory.h"
#include "transports/local_channel.h"

namespace tent {
namespace {

using Bytes = std::vector<std::uint8_t>;
constexpr TimeNs kWait = 30 * kSecond;

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "engine_stress: %s\n", why.c_str());
  std::_Exit(1);
}

void require(bool good, const std::string& why) {
  if (!good) give_up(why);
}

struct Side {
  std::shared_ptr<Engine> engine;
  PeerId peer = 0;
};

void tcp_ends(int (&fds)[2]) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* where = reinterpret_cast<sockaddr*>(&address);
  require(::bind(listener, where, size) == 0 && ::listen(listener, 1) == 0 &&
              ::getsockname(listener, where, &size) == 0,
          "no listener on loopback");
  fds[0] = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  require(::connect(fds[0], where, size) == 0, "no connection on loopback");
  fds[1] = ::accept(listener, nullptr, nullptr);
  ::close(listener);
}

std::atomic<LinkId> next_link{1};

LinkId join(Side (&sides)[2], RailKind kind) {
  std::vector<int> ends[2];
  int pair[2];
  if (kind == RailKind::Tcp) {
    tcp_ends(pair);
  } else {
    require(open_local_channel(ends[0], ends[1]).ok(), "no channel");
    require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0, "no socket pair");
  }
  const LinkId link = next_link.fetch_add(1);
  for (int side = 0; side < 2; ++side) {
    ends[side].push_back(pair[side]);
    LinkInfo info;
    info.kind = kind;
    info.rail = "rail " + std::to_string(int(kind));
    sides[side].engine->add_link(
        sides[side].peer, info,
        {.link = link, .fds = ends[side], .dialed = side == 0, .pid = ::getpid()});
  }
  return link;
}

Request message(Request::Op op, const Side& side, std::uint64_t tag, void* memory,
                std::size_t bytes) {
  Request request;
  request.op = op;
  request.peer = side.peer;
  request.context = 1;
  request.tag = tag;
  request.local = Layout::contiguous(reinterpret_cast<std::uint64_t>(memory), bytes);
  return request;
}

void fill(std::uint8_t* memory, std::size_t bytes, std::uint64_t seed) {
  std::uint64_t state = seed * 0x9e3779b97f4a7c15u + 1;
  for (std::size_t i = 0; i < bytes; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    memory[i] = std::uint8_t(state >> 56);
  }
}

class Stress {
 public:
  Stress(TimeNs until, unsigned seed) : until_(until), seed_(seed) {
    for (Side& side : sides_) side.engine = Engine::make({});
    sides_[0].peer = sides_[0].engine->add_peer("right");
    sides_[1].peer = sides_[1].engine->add_peer("left");
    for (RailKind kind : {RailKind::Tcp, RailKind::Shm, RailKind::Cma}) join(sides_, kind);
  }

  void run() {
    std::vector<std::thread> threads;
    for (int n = 0; n < 3; ++n) {
      threads.emplace_back([this, n] { talk(n % 2, n); });
    }
    threads.emplace_back([this] { write_and_notify(); });
    threads.emplace_back([this] { stop_things(); });
    threads.emplace_back([this] { look_around(); });
    threads.emplace_back([this] { change_links(); });
    for (std::thread& thread : threads) thread.join();
    for (Side& side : sides_) {
      require(side.engine->hold()->operations.outstanding() == 0, "transfers were left over");
      side.engine->close();
    }
    require(called_.load() == called_wanted_.load(), "a callback was lost or doubled");
    std::printf(
        "%llu messages, %llu writes, %llu stopped, %llu callbacks, %llu links, %llu "
        "redialed\n",
        (unsigned long long)messages_, (unsigned long long)writes_, (unsigned long long)stopped_,
        (unsigned long long)called_.load(), (unsigned long long)next_link.load(),
        (unsigned long long)redialed_.load());
  }

 private:
  bool going() const { return now_ns() < until_; }

  OperationRef start(int side, Request request) {
    return sides_[side].engine->hold()->start(std::move(request));
  }

  void wait(int side, const OperationRef& operation) {
    require(sides_[side].engine->wait(*operation, now_ns() + kWait), "a transfer hangs");
  }

  // Messages of all sizes, waited for by this thread, by another, or by a callback.
  void talk(int from, std::uint64_t channel) {
    std::mt19937_64 random(seed_ + channel);
    for (std::uint64_t n = 0; going(); ++n) {
      const std::size_t bytes = 1 + random() % (n % 8 == 0 ? 2'000'000 : 20'000);
      SharedMemory shared(sides_[from].engine, bytes);
      Bytes plain(bytes), target(bytes);
      auto* source = n % 3 == 0 ? static_cast<std::uint8_t*>(shared.address()) : plain.data();
      fill(source, bytes, random());
      const std::uint64_t tag = channel << 32 | n;
      auto recv =
          start(1 - from, message(Request::Op::Recv, sides_[1 - from], tag, target.data(), bytes));
      auto send = start(from, message(Request::Op::Send, sides_[from], tag, source, bytes));
      if (n % 4 == 0) {
        called_wanted_.fetch_add(1);
        sides_[from].engine->hold()->operations.call_at_end(
            send, [](void* count) { static_cast<std::atomic<int>*>(count)->fetch_add(1); },
            &called_);
      }
      std::thread other;
      if (n % 5 == 0) other = std::thread([&] { wait(1 - from, recv); });
      wait(1 - from, recv);
      wait(from, send);
      if (other.joinable()) other.join();
      require(recv->report.status.ok() && send->report.status.ok(),
              "a message failed: " + send->report.status.text + recv->report.status.text);
      require(std::memcmp(source, target.data(), bytes) == 0, "a message's bytes are wrong");
      ++messages_;
    }
  }

  void write_and_notify() {
    std::mt19937_64 random(seed_ + 100);
    Bytes memory(300'000), source(300'000);
    SegmentId segment;
    {
      Held held = sides_[1].engine->hold();
      const std::vector<Plane> planes{
          {reinterpret_cast<std::uint64_t>(memory.data()), memory.size()}};
      segment = held->node().segments().add(planes, true, true, 0, 7).id;
    }
    for (int n = 0; going(); ++n) {
      const std::size_t bytes = 1 + random() % memory.size();
      fill(source.data(), bytes, random());
      Request request = message(Request::Op::Write, sides_[0], 0, source.data(), bytes);
      request.remote = {segment, 7, 0, Layout::contiguous(0, bytes)};
      request.has_note = true;
      request.note = std::to_string(n);
      auto write = start(0, std::move(request));
      require(sides_[1].engine->wait_notification(segment, now_ns() + kWait), "no notice came");
      require(std::memcmp(source.data(), memory.data(), bytes) == 0, "a notice came too early");
      {
        Held held = sides_[1].engine->hold();
        auto& notes = held->node().segments().find(segment)->notes;
        require(notes.size() == 1 && notes[0].payload == std::to_string(n), "a wrong notice");
        notes.clear();
      }
      wait(0, write);
      require(write->report.status.ok(), "a write failed: " + write->report.status.text);
      ++writes_;
    }
    sides_[1].engine->close_segment(segment);
  }

  // Cancels and timeouts; the memory is reused at once and must stay as it was left.
  void stop_things() {
    std::mt19937_64 random(seed_ + 200);
    for (std::uint64_t n = 0; going(); ++n) {
      const std::size_t bytes = 1 + random() % 500'000;
      Bytes source(bytes, 1), target(bytes, 2);
      const std::uint64_t tag = std::uint64_t(9) << 32 | n;
      Request asked = message(Request::Op::Recv, sides_[1], tag, target.data(), bytes);
      if (n % 2 == 0) asked.expires = now_ns() + TimeNs(random() % 300'000);
      auto recv = start(1, std::move(asked));
      auto send = start(0, message(Request::Op::Send, sides_[0], tag, source.data(), bytes));
      if (n % 2 == 1) sides_[n / 2 % 2].engine->hold()->cancel((n / 2 % 2 ? recv : send)->id);
      wait(1, recv);
      const bool whole = recv->report.status.ok();
      require(!whole || target == source, "a message's bytes are wrong");
      target.assign(bytes, 3);
      if (!whole) sides_[0].engine->hold()->cancel(send->id);
      wait(0, send);
      source.assign(bytes, 4);
      require(target == Bytes(bytes, 3), "memory was written after its transfer had ended");
      ++stopped_;
    }
  }

  void look_around() {
    std::deque<ControlEvent> events;
    while (going()) {
      for (Side& side : sides_) {
        const NodeStats stats = side.engine->hold()->node().stats();
        require(stats.outstanding < 1000, "transfers pile up");
        side.engine->hold()->trace.turn(true);
        side.engine->hold()->trace.take();
        side.engine->events().take(now_ns() + kMillisecond, events);
        for (const ControlEvent& event : events) {
          if (&side == sides_) redial(event);
        }
        events.clear();
      }
    }
  }

  // What the control plane does: on a busy machine a rail may look dead for a while.
  void redial(const ControlEvent& event) {
    if (event.kind != ControlEvent::Kind::Down || event.reason == kOnPurpose) return;
    const auto kind = RailKind(event.rail.back() - '0');
    join(sides_, kind);
    ++redialed_;
  }

  void change_links() {
    std::mt19937_64 random(seed_ + 300);
    while (going()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const auto kind = RailKind(random() % 3);
      const LinkId link = join(sides_, kind);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      sides_[0].engine->hold()->disconnect(link, {Code::Failed, kOnPurpose, ""});
    }
  }

  static constexpr const char* kOnPurpose = "on purpose";
  Side sides_[2];
  const TimeNs until_;
  const unsigned seed_;
  std::atomic<std::uint64_t> messages_{0}, writes_{0}, stopped_{0}, redialed_{0};
  std::atomic<int> called_{0}, called_wanted_{0};
};

}  // namespace
}  // namespace tent

int main(int count, char** words) {
  if (count != 3) {
    std::fprintf(stderr, "usage: engine_stress SECONDS SEED\n");
    return 2;
  }
  const auto seconds = tent::TimeNs(std::atof(words[1]) * double(tent::kSecond));
  tent::Stress(tent::now_ns() + seconds, unsigned(std::atoi(words[2]))).run();
  return 0;
}
