// Stage: transport. The links of one transport by number. Engine lock held.
// What always holds: a link that is closed while a call of the transport is on the stack (a
// Receiver call did it) stays in memory, marked closed, until the outermost call returns.
#pragma once

#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/types.h"

namespace tent {

template <class AnyLink>
class LinkTable {
 public:
  // Held by every call that uses a link after it has called the Receiver.
  class Hold {
   public:
    explicit Hold(LinkTable& table) : table_(table) { ++table_.holds_; }
    ~Hold() {
      if (--table_.holds_ == 0) table_.dropped_.clear();
    }
    Hold(const Hold&) = delete;
    Hold& operator=(const Hold&) = delete;

   private:
    LinkTable& table_;
  };

  AnyLink* find(LinkId id) const {
    const auto found = links_.find(id);
    return found == links_.end() ? nullptr : found->second.get();
  }
  bool empty() const { return links_.empty(); }
  AnyLink& insert(LinkId id, std::unique_ptr<AnyLink> link) {
    return *(links_[id] = std::move(link));
  }
  void drop(LinkId id) {
    const auto found = links_.find(id);
    if (found == links_.end()) return;
    if (holds_ > 0) dropped_.push_back(std::move(found->second));
    links_.erase(found);
  }
  template <class Each>
  void each(Each each) const {
    for (const auto& [id, link] : links_) each(*link);
  }

 private:
  std::unordered_map<LinkId, std::unique_ptr<AnyLink>> links_;
  std::vector<std::unique_ptr<AnyLink>> dropped_;
  int holds_ = 0;
};

}  // namespace tent
