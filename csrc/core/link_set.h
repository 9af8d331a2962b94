// Stage: engine. The links of one session, and the slices of links that are being fenced: they stay
// here until the peer says that nothing sent on the dead link can land any more. Pure; one thread.
// Owned by Session.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "core/link.h"
#include "core/types.h"

namespace tent {

struct LostSlice {
  TransferId flow;
  SliceSpan span;
  LinkId also;  // went down with its twin; its own link: it has none
};

class LinkSet {
 public:
  explicit LinkSet(const CoreSettings& settings) : settings_(settings) {}

  Link* find(LinkId link);
  bool empty() const { return links_.empty(); }
  std::size_t size() const { return links_.size(); }
  const std::map<LinkId, std::unique_ptr<Link>>& all() const { return links_; }
  // False when the peer has fenced the link already.
  bool add(LinkId link, const LinkInfo& info, TimeNs now);
  // Takes the link away and returns what was in flight on it; its slices wait for the fence, but
  // those that have a twin on another link.
  std::deque<Unacked> remove(LinkId link);
  // The fence holds: gives out the slices that may be sent again. What was on two links waits for
  // both.
  std::vector<LostSlice> fenced(LinkId link);
  void refuse_later(LinkId link);  // fenced before we knew it
  void clear();

  Link* quickest();  // for control messages
  RailKinds kinds() const;
  // Links whose oldest frame stays overdue although the peer spoke on another link meanwhile.
  std::vector<LinkId> silent(TimeNs now);
  bool any_overdue(TimeNs now) const;
  bool all_overdue(TimeNs now) const;  // also when there is none
  TimeNs next_due(TimeNs now) const;   // of those that are not overdue yet

 private:
  bool spoke_elsewhere(const Link& link) const;

  const CoreSettings& settings_;
  std::map<LinkId, std::unique_ptr<Link>> links_;
  std::map<LinkId, std::vector<LostSlice>> fencing_;
  std::deque<LinkId> refused_;
};

}  // namespace tent
