// Stage: transport. A queue of small values without an allocation per value: it grows to what was
// needed once, and gives that back when it is empty again. Engine lock held.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace tent {

template <class Value>
class Ring {
 public:
  bool empty() const { return size_ == 0; }
  std::size_t size() const { return size_; }
  Value& operator[](std::size_t index) { return values_[(first_ + index) & (values_.size() - 1)]; }
  const Value& operator[](std::size_t index) const {
    return values_[(first_ + index) & (values_.size() - 1)];
  }
  Value& front() { return values_[first_]; }
  Value& back() { return (*this)[size_ - 1]; }

  void push(Value value) {
    if (size_ == values_.size()) grow();
    (*this)[size_++] = std::move(value);
  }
  void pop() {
    first_ = (first_ + 1) & (values_.size() - 1);
    if (--size_ == 0 && values_.size() > kKept) *this = Ring();
  }

 private:
  static constexpr std::size_t kKept = 256;

  void grow() {
    std::vector<Value> wider(values_.empty() ? 16 : 2 * values_.size());  // a power of two, always
    for (std::size_t i = 0; i < size_; ++i) wider[i] = std::move((*this)[i]);
    values_ = std::move(wider);
    first_ = 0;
  }

  std::vector<Value> values_;
  std::size_t first_ = 0, size_ = 0;
};

}  // namespace tent
