// Stage: tests. See simulate.h.
#include "simulator/simulate.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <mutex>
#include <stdexcept>
#include <string_view>

#include "core/sabotage.h"
#include "simulator/world.h"

namespace tent::sim {
namespace {

thread_local std::uint64_t running_seed = 0;

void say_seed(int signal) {
  std::array<char, 64> text{};
  std::size_t length = text.size();
  text[--length] = '\n';
  std::uint64_t seed = running_seed;
  do {
    text[--length] = static_cast<char>('0' + seed % 10);
  } while ((seed /= 10) != 0);
  constexpr std::string_view what = "crashed in the schedule of seed ";
  [[maybe_unused]] auto written = write(2, what.data(), what.size());
  written = write(2, text.data() + length, text.size() - length);
  ::signal(signal, SIG_DFL);
  raise(signal);
}

// While schedules run, a crash says which seed it was before it goes its way.
class CrashNote {
 public:
  CrashNote() {
    const std::lock_guard lock(mutex_);
    if (users_++ != 0) return;
    struct sigaction action{};
    action.sa_handler = say_seed;
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &action, &before_[i]);
  }
  ~CrashNote() {
    const std::lock_guard lock(mutex_);
    if (--users_ != 0) return;
    for (std::size_t i = 0; i < kSignals.size(); ++i) sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr std::array<int, 4> kSignals{SIGSEGV, SIGABRT, SIGFPE, SIGBUS};
  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline std::array<struct sigaction, 4> before_{};
};

class Sabotage {
 public:
  explicit Sabotage(const std::string& name) {
    if (!name.empty() && name != "no_fence" && name != "no_dedup" && name != "early_note") {
      throw std::invalid_argument("there is no sabotage \"" + name +
                                  "\": use no_fence, no_dedup or early_note");
    }
    sabotage::no_fence = name == "no_fence";
    sabotage::no_dedup = name == "no_dedup";
    sabotage::early_note = name == "early_note";
  }
  ~Sabotage() { sabotage::no_fence = sabotage::no_dedup = sabotage::early_note = false; }
};

}  // namespace

Outcome simulate(const Plan& plan) {
  if (plan.family >= static_cast<int>(Family::kCount)) {
    throw std::invalid_argument("there is no such family of schedules");
  }
  const Sabotage sabotage(plan.sabotage);
  const CrashNote note;
  Outcome outcome;
  for (std::uint64_t i = 0; i < plan.schedules; ++i) {
    const std::uint64_t seed = plan.first_seed + i;
    running_seed = seed;
    World world(seed, plan.family, plan.keep_text);
    world.run();
    ++outcome.schedules;
    outcome.events += world.events;
    outcome.hash = (outcome.hash ^ world.journal.hash()) * 0x9fb21c651e98df25ull;
    count(outcome.seen, world.coverage);
    if (plan.keep_text) outcome.text = std::move(world.journal.lines());
    if (!world.journal.failed()) continue;
    outcome.failures.push_back({seed, world.journal.failure()});
    if (outcome.failures.size() >= plan.failures_max) break;
  }
  return outcome;
}

}  // namespace tent::sim
