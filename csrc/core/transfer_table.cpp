// Stage: engine. See the header.
#include "core/transfer_table.h"

#include <algorithm>
#include <utility>

namespace tent {

void Transfer::count(const std::string& rail, std::uint64_t bytes) {
  auto share = std::find_if(report.rails.begin(), report.rails.end(),
                            [&](const RailShare& s) { return s.rail == rail; });
  if (share == report.rails.end()) share = report.rails.insert(share, {rail, 0, 0});
  share->bytes += bytes;
  ++share->slices;
}

void Transfer::uncount(const std::string& rail, std::uint64_t bytes) {
  for (RailShare& share : report.rails) {
    if (share.rail != rail) continue;
    share.bytes -= bytes;
    --share.slices;
  }
}

Transfer& TransferTable::add(Request request, TimeNs now) {
  const TransferId id = request.id;
  Transfer& transfer = transfers_[id];
  transfer.report.id = id;
  transfer.report.peer = request.peer;
  transfer.report.bytes = request.local.bytes();
  transfer.report.started = now;
  if (request.expires != kNever) times_.emplace(request.expires, id);
  transfer.request = std::move(request);
  return transfer;
}

Transfer* TransferTable::find(TransferId id) {
  const auto found = transfers_.find(id);
  return found == transfers_.end() ? nullptr : &found->second;
}

void TransferTable::end(TransferId id, Status status, TimeNs now) {
  auto node = transfers_.extract(id);
  if (node.empty()) return;
  Report report = std::move(node.mapped().report);
  report.status = std::move(status);
  report.ended = now;
  ++(report.status.ok() ? done : failed);
  if (transfers_.empty()) times_.clear();
  outbox_.done(std::move(report));
}

void TransferTable::wait_until(Transfer& transfer, TimeNs patience) {
  transfer.patience = patience;
  times_.emplace(patience, transfer.request.id);
}

std::vector<TransferId> TransferTable::due(TimeNs now) {
  std::vector<TransferId> ids;
  while (!times_.empty() && times_.begin()->first <= now) {
    ids.push_back(times_.begin()->second);
    times_.erase(times_.begin());
  }
  return ids;
}

std::vector<TransferId> TransferTable::with_peer(PeerId peer) const {
  std::vector<TransferId> ids;
  for (const auto& [id, transfer] : transfers_) {
    if (transfer.report.peer == peer) ids.push_back(id);
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace tent
