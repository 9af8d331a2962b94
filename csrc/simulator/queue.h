// Stage: tests. A first-in-first-out queue in one vector, so that thousands of short-lived pipes do
// not each cost several allocations. References stay good until the next push or pop.
// A value; one thread.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace tent::sim {

template <class Item>
class Queue {
 public:
  bool empty() const { return head_ == items_.size(); }
  std::size_t size() const { return items_.size() - head_; }
  Item& operator[](std::size_t i) { return items_[head_ + i]; }
  const Item& operator[](std::size_t i) const { return items_[head_ + i]; }
  Item& front() { return items_[head_]; }
  Item& back() { return items_.back(); }
  void push(Item item) { items_.push_back(std::move(item)); }
  void insert(std::size_t i, Item item) {
    items_.insert(items_.begin() + static_cast<std::ptrdiff_t>(head_ + i), std::move(item));
  }
  Item pop() {
    Item item = std::move(items_[head_++]);
    if (head_ == items_.size()) {
      clear();
    } else if (head_ >= 64 && head_ * 2 > items_.size()) {
      items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
    return item;
  }
  void resize(std::size_t size) { items_.resize(head_ + size); }
  void clear() {
    items_.clear();
    head_ = 0;
  }

 private:
  std::vector<Item> items_;
  std::size_t head_ = 0;
};

}  // namespace tent::sim
