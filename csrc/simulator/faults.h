// Stage: tests. What goes wrong, drawn from the seed: links, rails and processes that fail and
// heal. Owned by World; one thread.
#pragma once

#include <cstdint>

#include "simulator/network.h"
#include "simulator/profile.h"

namespace tent::sim {

class Faults {
 public:
  explicit Faults(World& world) : world_(world) {}
  void build();
  void strike();                        // one fault, now
  void resume(std::uint32_t process);   // it handles at once what has come meanwhile
  void restart(std::uint32_t process);  // as a new incarnation
  void heal();                          // from now on everything works

 private:
  Link* draw_link(bool any_rail);
  void hold(Link& link, TimeNs until);
  void slow();
  void outage();
  void mischief();
  void stop();
  void end(FaultKind kind);

  World& world_;
};

}  // namespace tent::sim
