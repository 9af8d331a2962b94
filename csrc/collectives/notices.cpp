// Stage: collectives. Notices of lost ranks: see the header.
#include "collectives/notices.h"

#include <algorithm>
#include <cstring>

namespace tent {

namespace {
constexpr TimeNs kTellingMax = 5 * kSecond;  // whoever has not heard by then has his own timeouts

std::uint64_t address_of(const void* memory) { return reinterpret_cast<std::uint64_t>(memory); }
}  // namespace

void Notices::listen() {
  if (is_listening_ || closed_ || ranks_.size < 2) return;
  is_listening_ = true;
  listening_ = transfers_.recv(kAnyPeer, context_, 0, {address_of(&incoming_), sizeof incoming_},
                               kNever, this);
}

void Notices::tell_all(std::int32_t lost_rank, const std::string& why) {
  auto notice = std::make_shared<Notice>();
  notice->lost_rank = lost_rank;
  std::memcpy(notice->text, why.data(), std::min(why.size(), sizeof notice->text - 1));
  for (std::int32_t rank = 0; rank < ranks_.size; ++rank) {
    if (rank == ranks_.rank || rank == lost_rank) continue;
    const TransferId id = transfers_.send(ranks_.peers[std::size_t(rank)], context_, 0,
                                          {address_of(notice.get()), sizeof(Notice)},
                                          transfers_.now() + kTellingMax, this);
    outgoing_.emplace(id, notice);
  }
}

void Notices::close() {
  if (closed_) return;
  closed_ = true;
  if (is_listening_) transfers_.cancel(listening_);
  if (!is_listening_ && outgoing_.empty()) owner_.quiet();
}

void Notices::ended(TransferId id, const Report& report) {
  if (outgoing_.erase(id) == 0) {
    is_listening_ = false;
    // What came from outside: the rank must exist, the text must end.
    incoming_.text[sizeof incoming_.text - 1] = '\0';
    const Notice heard = incoming_;
    if (report.status.ok() && !closed_) {
      listen();
      if (heard.lost_rank < 0 || heard.lost_rank >= ranks_.size) return;
      const bool from_itself = report.peer == ranks_.peers[std::size_t(heard.lost_rank)];
      return owner_.heard(heard.lost_rank, heard.text, from_itself);
    }
  }
  if (closed_ && !is_listening_ && outgoing_.empty()) owner_.quiet();
}

}  // namespace tent
