// Stage: tests. One schedule: some processes, a network between them, work to do and faults, all
// drawn from one seed. Runs it to its end and says which promise was broken, if one was.
// One thread; nothing outside of the seed has an influence.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "simulator/carrier.h"
#include "simulator/coverage.h"
#include "simulator/faults.h"
#include "simulator/journal.h"
#include "simulator/ledger.h"
#include "simulator/network.h"
#include "simulator/process.h"
#include "simulator/profile.h"
#include "simulator/random.h"
#include "simulator/reader.h"
#include "simulator/timeline.h"
#include "simulator/workload.h"

namespace tent::sim {

struct World {
  World(std::uint64_t seed, int forced_family, bool keep_text);
  void run();

  void fail(const std::string& why) { journal.fail(timeline.now(), why); }
  TimeNs now() const { return timeline.now(); }
  template <class... Numbers>
  void log(std::string_view what, Numbers... numbers) {
    journal.event(timeline.now(), what, numbers...);
  }

  Random random;
  Profile profile;
  Timeline timeline;
  Journal journal;
  Coverage coverage;
  Ledger ledger;
  Network network;
  Carrier carrier;
  Reader reader;
  Workload workload;
  Faults faults;
  std::vector<std::unique_ptr<Process>> processes;
  std::uint64_t events = 0;

 private:
  void dispatch(const Event& event);
  void finish_calls();
  void review();
  void finish();
  bool healed_ = false, draining_ = false, over_ = false;
  TimeNs give_up_at_ = 0;
};

}  // namespace tent::sim
