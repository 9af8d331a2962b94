// Stage: tests. The rails between simulated processes, the links that live and die on them, and the
// control plane: who may connect to which incarnation, and who is told what when.
// Owned by World; one thread. Moving bytes over a link is Carrier's part.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/node.h"
#include "simulator/pipe.h"

namespace tent::sim {

struct World;

struct Rail {
  RailKind kind = RailKind::Tcp;
  bool places_by_itself = false;
  bool spare = false;  // never fails
  std::string name;
  double ns_per_byte = 1;
  TimeNs latency = 0, jitter = 0;
  std::uint64_t buffer_bytes = 0;  // what fits between the two processes
  TimeNs out_until = 0;
  TimeNs slow_until = 0;
};

// Two processes, as incarnations that know each other.
struct Pairing {
  std::array<std::uint32_t, 2> process{}, generation{};
  std::array<PeerId, 2> peer{};  // the name of the other end at this end
  std::array<bool, 2> lost{};    // this end gave the other up
  std::array<TimeNs, 2> heard{}, waits_since{kNever, kNever};
  std::uint32_t live = 0;  // transfers between the two that have not ended
  std::vector<std::uint32_t> links;
  std::vector<std::uint8_t> dialing;  // per rail: a connection is being made
};

struct Link {
  enum class State : std::uint8_t { Pending, Up, Closed };
  LinkId id = 0;
  std::uint32_t pairing = 0, rail = 0, index = 0;
  std::array<State, 2> state{State::Pending, State::Pending};
  std::array<bool, 2> doomed{};  // the end knows that it is dead as soon as it runs
  bool broken = false;           // nothing passes any more
  std::array<Pipe, 2> pipe;      // by the sender's end

  bool open(int end) const { return state[std::size_t(end)] == State::Up; }
};

class Network {
 public:
  explicit Network(World& world) : world_(world) {}
  void build();  // the rails, drawn from the profile

  // The live pairing of two processes, made if need be; kNone while one of them is dead, or has
  // given up the other and the other does not know yet.
  std::uint32_t pairing_of(std::uint32_t a, std::uint32_t b);
  Pairing& pairing(std::uint32_t index) { return pairings_[index]; }
  std::uint32_t pairing_count() const { return static_cast<std::uint32_t>(pairings_.size()); }
  // Where a process knows a peer by this name; kNone: nowhere.
  std::uint32_t find_pairing(std::uint32_t process, PeerId peer, int* end) const;
  bool current(const Pairing& pairing) const;  // both incarnations live, and neither gave up
  Rail& rail(const Link& link);
  bool on_one_host(const Link& link);
  std::vector<Rail>& rails(std::uint32_t a, std::uint32_t b);
  std::vector<std::unique_ptr<Link>>& links() { return links_; }
  Link* find_link(LinkId id);
  int end_of(const Link& link, std::uint32_t process) const;

  // ---- what a Node says ----------------------------------------------------------------------
  void close(std::uint32_t process, LinkId link);
  void dial(std::uint32_t process, PeerId peer, RailKinds rails);
  void peer_lost(std::uint32_t process, PeerId peer, const Status& why);

  // ---- events ----------------------------------------------------------------------------------
  void connect(std::uint32_t pairing, std::uint32_t rail);
  void up(Link& link, int end);
  void told(Link& link, int end);
  void abandon(std::uint32_t pairing, int end);
  void no_rails(std::uint32_t pairing, int end, RailKinds kinds);

  // The transport of this end noticed that the link is dead, or closes it over a malformed frame.
  void lost(Link& link, int end, const char* why);
  void process_gone(std::uint32_t process);
  void break_down(Link& link, TimeNs told_first, TimeNs told_second);  // kNever: not told
  void heal();  // all rails work again; links that are dead stay dead

 private:
  void close_end(Link& link, int end, bool late_tail, bool tell);
  void plan_connect(std::uint32_t pairing, std::uint32_t rail, TimeNs after);
  Rail draw_rail(std::uint32_t a, std::uint32_t b, std::uint32_t index);
  void check_loss(const Pairing& pairing, int end, const Status& why);
  void check_no_links(const Pairing& pairing, int end);

  World& world_;
  std::vector<std::vector<Rail>> rails_;  // per pair of processes
  std::vector<std::uint32_t> current_;    // per pair: its latest pairing
  std::vector<Pairing> pairings_;
  std::vector<std::unique_ptr<Link>> links_;
};

}  // namespace tent::sim
