// Stage: wire. See the header.
#include "core/control_stream.h"

#include <utility>

namespace tent {

void ControlStream::push(std::shared_ptr<const Body> body, TransferId flow, bool ends) {
  const std::uint64_t number = next_out_++;
  entries_.emplace_hint(entries_.end(), number, Entry{number, std::move(body), flow, ends});
  waiting_.insert(waiting_.end(), number);
}

void ControlStream::replace(TransferId flow, std::shared_ptr<const Body> body) {
  for (auto& [number, entry] : entries_) {
    if (entry.flow != flow) continue;
    entry.body = body;
    entry.ends = false;
  }
}

const ControlStream::Entry* ControlStream::next() {
  if (waiting_.empty()) return nullptr;
  const std::uint64_t number = *waiting_.begin();
  if (number >= entries_.begin()->first + kControlWindow) return nullptr;
  return &entries_.at(number);
}

void ControlStream::sent(std::uint64_t number) { waiting_.erase(number); }

const ControlStream::Entry* ControlStream::lost(std::uint64_t number) {
  const auto found = entries_.find(number);
  if (found == entries_.end()) return nullptr;
  waiting_.insert(number);
  return &found->second;
}

std::optional<ControlStream::Entry> ControlStream::acked(std::uint64_t number) {
  auto node = entries_.extract(number);
  if (node.empty()) return std::nullopt;
  waiting_.erase(number);
  return std::move(node.mapped());
}

bool ControlStream::arrived(std::uint64_t number, std::span<const std::uint8_t> body) {
  if (number < next_in_) return true;  // a repeat
  if (number >= next_in_ + 2 * kControlWindow) return false;
  early_.try_emplace(number, body.begin(), body.end());
  return true;
}

bool ControlStream::take(Body& out) {
  const auto first = early_.begin();
  if (first == early_.end() || first->first != next_in_) return false;
  out = std::move(first->second);
  early_.erase(first);
  ++next_in_;
  return true;
}

}  // namespace tent
