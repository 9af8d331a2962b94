// Stage: benchmarks. What a slice costs on an RDMA link before and after the device: the sender's
// frame posted, the receiver's read posted, the finished read told as landed. Each number is the
// mean of a burst; printed are the median over the bursts, and how often memory was allocated.
// slice_cost LIBRARY BURSTS: LIBRARY has fake devices and lean_begin().
#include <dlfcn.h>
#include <sys/epoll.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <vector>

#include "transports/rdma.h"

namespace {
std::uint64_t allocations = 0;
}  // namespace

void* operator new(std::size_t bytes) {
  ++allocations;
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

using namespace tent;

namespace {

constexpr std::uint64_t kSlice = 64u << 10, kBurst = 16;  // as many reads as go at a time
constexpr LinkId kLink = 1;

class Side final : public Receiver {
 public:
  explicit Side(const std::string& library)
      : transport(::epoll_create1(0), library), memory(kSlice * kBurst) {
    transport.memory.wanted = true;
    transport.memory.hold({MemoryOwner::Kind::Transfer, 1}, {{address(), memory.size()}});
  }
  std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(memory.data()); }

  bool frame(LinkId, const FrameHeader&, std::span<const std::uint8_t>) override { return true; }
  bool slice(LinkId, const FrameHeader&) override { return true; }
  bool landing(LinkId, TransferId, std::uint64_t offset, std::uint64_t length,
               Pieces& out) override {
    out.push_back({address() + offset, length});
    return true;
  }
  bool landed(LinkId, const FrameHeader&) override { return ++slices != 0; }
  bool source(LinkId, TransferId, std::uint64_t offset, std::uint64_t length,
              Pieces& out) override {
    out.push_back({address() + offset, length});
    return true;
  }
  void down(LinkId, const Status& why) override {
    std::fprintf(stderr, "the link went down: %s\n", why.text.c_str());
    std::exit(1);
  }

  RdmaTransport transport;
  std::vector<std::uint8_t> memory;
  std::uint64_t slices = 0;
};

void require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.text.c_str());
  std::exit(1);
}

void join(Side& near, Side& far) {
  RdmaEndpoint ours, theirs;
  require(near.transport.open(kLink, {.device = "fake0"}, ours));
  require(far.transport.open(kLink, {.device = "fake1"}, theirs));
  std::shared_ptr<RdmaJoining> joining;
  require(far.transport.join(kLink, ours, false, joining));
  require(joining->run());
  require(near.transport.join(kLink, theirs, true, joining));
  require(joining->run());
  require(near.transport.joined(kLink, true));
  Status why;
  while (!near.transport.greeted(kLink, why) || !far.transport.greeted(kLink, why)) {
    near.transport.poll(near);
    far.transport.poll(far);
  }
  Connection connection;
  connection.link = kLink;
  for (Side* side : {&near, &far}) require(side->transport.connect(connection));
}

struct Costs {
  std::vector<double> sent, asked, landed;  // ns a slice
};

template <class Work>
void time(std::vector<double>& into, Work work) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  work();
  const std::chrono::duration<double, std::nano> spent = Clock::now() - begin;
  into.push_back(spent.count() / double(kBurst));
}

void burst(Side& near, Side& far, Costs& costs, std::uint64_t& sequence) {
  time(costs.sent, [&] {
    for (std::uint64_t i = 0; i < kBurst; ++i) {
      Frame frame;
      frame.header.kind = FrameKind::Slice;
      frame.header.flow = 1;
      frame.header.sequence = ++sequence;
      frame.header.offset = i * kSlice;
      frame.header.body_bytes = std::uint32_t(kSlice);
      near.transport.post(kLink, std::move(frame));
      near.transport.send(kLink, near);
    }
  });
  time(costs.asked, [&] { far.transport.poll(far); });
  time(costs.landed, [&] {
    while (far.slices < sequence) far.transport.poll(far);
  });
  near.transport.poll(near);
  far.transport.poll(far);
}

double median(std::vector<double>& values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** words) {
  if (count != 3) return 2;
  Side near(words[1]), far(words[1]);
  join(near, far);
  void* library = ::dlopen(words[1], RTLD_NOW);
  reinterpret_cast<void (*)()>(::dlsym(library, "lean_begin"))();
  Costs costs;
  const std::size_t bursts = std::size_t(std::atoi(words[2])), warm = 1000;
  for (auto* each : {&costs.sent, &costs.asked, &costs.landed}) each->reserve(bursts + warm);
  std::uint64_t sequence = 0;
  for (std::size_t i = 0; i < warm; ++i) burst(near, far, costs, sequence);
  for (auto* each : {&costs.sent, &costs.asked, &costs.landed}) each->clear();
  const std::uint64_t before = allocations;
  for (std::size_t i = 0; i < bursts; ++i) burst(near, far, costs, sequence);
  std::printf(
      "{\"frame_ns\": %.1f, \"read_ns\": %.1f, \"landed_ns\": %.1f, \"allocations\": %llu}\n",
      median(costs.sent), median(costs.asked), median(costs.landed),
      static_cast<unsigned long long>(allocations - before));
  std::fflush(stdout);
  std::_Exit(0);  // the fake devices were changed under way: they do not end well
}
