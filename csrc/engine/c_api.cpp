// Stage: engine. See c_api.h: the functions of the table. Any thread, never the GIL. No exception
// leaves: what cannot begin is a work that has already failed.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <utility>

#include "drivers/cuda.h"
#include "engine/clock.h"
#include "engine/engine.h"
#include "engine/works.h"

namespace tent {
namespace {

TimeNs until_of(std::int64_t timeout_ns) { return expiry(now_ns(), timeout_ns); }

void copy_text(const std::string& from, char* to, std::size_t bytes) {
  if (to == nullptr || bytes == 0) return;
  const std::size_t length = std::min(from.size(), bytes - 1);
  std::memcpy(to, from.data(), length);
  to[length] = 0;
}

TentWork* refused(TentEngine* owner, Code code, const std::string& why) {
  auto* work = new TentWork;
  work->owner = owner;
  work->operation = std::make_shared<Operation>(0);
  work->operation->report.status = {code, why, ""};
  work->operation->make_ready();
  return work;
}

// Runs `begin(held, group)` under the engine lock for a group that is there and whole.
TentWork* begin_in(TentEngine* owner, GroupId id,
                   const std::function<TentWork*(Held&, std::shared_ptr<WorkGroup>)>& begin) {
  try {
    Held held = owner->engine.hold();
    const auto found = owner->groups.find(id);
    if (found == owner->groups.end()) {
      return refused(owner, Code::Failed, "the process group was destroyed");
    }
    if (const std::string& why = found->second->aborted; !why.empty()) {
      return refused(owner, Code::Cancelled, "the process group was aborted: " + why);
    }
    return begin(held, found->second);
  } catch (const std::exception& error) {
    return refused(owner, Code::Failed, error.what());
  }
}

TentWork* message(TentEngine* owner, GroupId group_id, Request::Op op, std::int32_t rank,
                  std::uint64_t tag, TentBuffer buffer, TentPlace place, std::int64_t timeout_ns) {
  return begin_in(owner, group_id, [&](Held& held, std::shared_ptr<WorkGroup> group) {
    const RankMap& ranks = group->ranks;
    const bool any = op == Request::Op::Recv && rank < 0;
    if (!any && (rank < 0 || rank >= ranks.size || rank == ranks.rank)) {
      return refused(owner, Code::Failed,
                     "rank " + std::to_string(rank) + " is not another rank of this group of " +
                         std::to_string(ranks.size));
    }
    if (const auto gone = group->aborters.find(rank); gone != group->aborters.end())
      return refused(owner, Code::PeerLost, gone->second);
    owner->collectives.listen(group_id);
    Request request;
    request.op = op;
    request.peer = any ? kAnyPeer : ranks.peers[std::size_t(rank)];
    request.context = ranks.context;
    request.tag = tag;
    request.local =
        Layout::contiguous(buffer.address, buffer.bytes, Device(place.device), place.stream);
    request.expires = until_of(timeout_ns);
    return new TentWork{owner, held->start(std::move(request)), std::move(group), 0};
  });
}

// ---- the table

std::uint64_t group_create(TentEngine* owner, std::uint64_t context, std::int32_t rank,
                           std::int32_t size, const std::uint32_t* peers) {
  try {
    Held held = owner->engine.hold();
    RankMap ranks{context, rank, size, {peers, peers + size}};
    const GroupId id = owner->collectives.add_group(ranks);
    auto group = std::make_shared<WorkGroup>();
    group->ranks = std::move(ranks);
    owner->groups.emplace(id, std::move(group));
    return id;
  } catch (const std::exception&) {
    return 0;
  }
}

void abort_in(TentEngine* owner, Held& held, GroupId id, const std::string& why) {
  const auto found = owner->groups.find(id);
  if (found == owner->groups.end()) return;
  if (found->second->aborted.empty()) found->second->aborted = why;
  for (const TransferId transfer : held->operations.ids_in(found->second->ranks.context)) {
    held->cancel(transfer);
  }
}

// Another rank has aborted the group: messages with it end, and are refused from now on.
void aborted_by(TentEngine* owner, Exchange& exchange, GroupId id, std::int32_t rank,
                const std::string& why) {
  const auto found = owner->groups.find(id);
  if (found == owner->groups.end()) return;
  WorkGroup& group = *found->second;
  group.aborters.emplace(rank, why);
  const PeerId peer = group.ranks.peers[std::size_t(rank)];
  for (const TransferId transfer : exchange.operations.ids_in(group.ranks.context, peer))
    exchange.node().fail(transfer, {Code::PeerLost, why, ""}, exchange.now());
}

void group_destroy(TentEngine* owner, std::uint64_t group) {
  try {
    Held held = owner->engine.hold();
    abort_in(owner, held, group, "it was destroyed");
    owner->collectives.remove_group(group);
    owner->groups.erase(group);
  } catch (const std::exception&) {  // closed: everything has ended
  }
}

void group_abort(TentEngine* owner, std::uint64_t group, const char* why) {
  try {
    Held held = owner->engine.hold();
    abort_in(owner, held, group, why);
    owner->collectives.abort(group, why);
  } catch (const std::exception&) {  // closed: everything has ended
  }
}

TentWork* send(TentEngine* owner, std::uint64_t group, std::int32_t to, std::uint64_t tag,
               TentBuffer buffer, TentPlace place, std::int64_t timeout_ns) {
  return message(owner, group, Request::Op::Send, to, tag, buffer, place, timeout_ns);
}

TentWork* recv(TentEngine* owner, std::uint64_t group, std::int32_t from, std::uint64_t tag,
               TentBuffer buffer, TentPlace place, std::int64_t timeout_ns) {
  return message(owner, group, Request::Op::Recv, from, tag, buffer, place, timeout_ns);
}

TentWork* collective(TentEngine* owner, std::uint64_t group_id, const TentCollectiveCall* call) {
  return begin_in(owner, group_id, [&](Held& held, std::shared_ptr<WorkGroup> group) {
    const auto operation = std::make_shared<Operation>(held->node().next_id());
    Operations& operations = held->operations;
    auto* work = new TentWork{owner, operation, std::move(group), 0};
    work->collective =
        owner->collectives.start(group_id, *call, [&operations, operation](Report report) {
          operations.finish(operation, std::move(report));
        });
    return work;
  });
}

std::uint64_t scratch_bytes(TentEngine* owner, std::uint64_t group,
                            const TentCollectiveCall* call) {
  try {
    const Held held = owner->engine.hold();
    return owner->collectives.scratch_bytes(group, *call);
  } catch (const std::exception&) {  // closed: the call itself says so
    return 0;
  }
}

void computed(TentEngine* owner, const TentStep* step, std::uint64_t stream, const char* error) {
  const Status status{error ? Code::Failed : Code::Ok, error ? error : "", ""};
  try {
    const Held held = owner->engine.hold();
    owner->collectives.computed(*step, stream, status);
  } catch (const std::exception&) {  // closed: nobody waits for it any more
  }
}

int can_use(TentEngine* owner, TentPlace place, const TentBuffer* buffers, std::size_t count,
            char* why, std::size_t why_bytes) {
  std::string reason;
  const Cuda* cuda = Cuda::load_once(reason);
  for (std::size_t i = 0; cuda != nullptr && reason.empty() && i < count; ++i)
    reason = cuda->why_not_on(place.device, buffers[i].address, buffers[i].bytes);
  if (reason.empty()) {
    try {
      Held held = owner->engine.hold();
      reason = held->why_not_after(Device(place.device), place.stream).text;
    } catch (const std::exception& error) {
      reason = error.what();
    }
  }
  copy_text(reason, why, why_bytes);
  return reason.empty();
}

int done(TentWork* work) { return work->operation->ready(); }

int wait(TentWork* work, std::int64_t timeout_ns) {
  if (work->operation->ready()) return 1;
  try {
    return work->owner->engine.wait(*work->operation, until_of(timeout_ns));
  } catch (const std::exception&) {  // in a child of fork it will never end
    return 0;
  }
}

// Who cancelled it: the abort of the whole group has a better reason than the transfer knows.
std::string reason_of(TentWork* work) {
  const Report& report = work->operation->report;
  if (report.status.code == Code::Cancelled && work->group) {
    try {
      const Held held = work->owner->engine.hold();
      const std::string& why = work->group->aborted;
      if (!why.empty()) return "the process group was aborted: " + why;
    } catch (const std::exception&) {  // closed
    }
  }
  return report.status.text;
}

std::int32_t status(TentWork* work, char* text, std::size_t text_bytes, std::int32_t* source) {
  const Report& report = work->operation->report;
  std::string why = text ? reason_of(work) : "";
  if (!report.status.rail.empty()) why += " (rail " + report.status.rail + ")";
  if (source) *source = -1;
  if (work->group) {
    const auto& peers = work->group->ranks.peers;
    const auto from = std::find(peers.begin(), peers.end(), report.peer);
    if (source && from != peers.end()) *source = std::int32_t(from - peers.begin());
  }
  copy_text(why, text, text_bytes);
  return std::int32_t(report.status.code);
}

void cancel(TentWork* work) {
  if (work->operation->ready()) return;
  try {
    Held held = work->owner->engine.hold();
    if (work->collective != 0) {
      work->owner->collectives.cancel(work->collective);
    } else {
      held->cancel(work->operation->id);
    }
  } catch (const std::exception&) {  // closed: it has ended
  }
}

void when_done(TentWork* work, void (*fn)(void*), void* context) {
  work->owner->engine.notifier().lend_hand();
  try {
    Held held = work->owner->engine.hold();
    held->operations.call_at_end(work->operation, fn, context);
    return;
  } catch (const std::exception&) {  // closed: there is no notifier any more
  }
  if (work->operation->ready()) fn(context);
}

void release(TentWork* work) { delete work; }

TentStorage* storage_used(TentEngine* owner, TentStorage* known, TentBuffer memory) {
  static std::atomic<std::uint64_t> numbers{0};
  // An engine that has ended may have left its address to this one.
  if (known != nullptr && known->engine.lock().get() != &owner->engine) {
    delete std::exchange(known, nullptr);
  }
  try {
    Held held = owner->engine.hold();
    RdmaMemory& registered = held->rdma.memory;
    if (!registered.wanted || registered.kept_bytes_max == 0) return known;
    if (known == nullptr) known = new TentStorage{owner->engine.weak_from_this(), ++numbers};
    registered.keep(known->number, {memory.address, memory.bytes});
  } catch (const std::runtime_error&) {  // closed: nothing is registered any more
  }
  return known;
}

void storage_gone(TentStorage* storage) {
  const std::unique_ptr<TentStorage> gone(storage);
  const std::shared_ptr<Engine> engine = gone->engine.lock();
  if (!engine) return;
  try {
    engine->hold()->rdma.memory.forget(gone->number);
  } catch (const std::runtime_error&) {  // closed, or a child of fork
  }
}

}  // namespace

const TentApi& c_functions() {
  static const TentApi api{
      TENT_API_VERSION, nullptr,       group_create, group_destroy, group_abort, send, recv,
      collective,       scratch_bytes, computed,     can_use,       done,        wait, status,
      cancel,           when_done,     release,      storage_used,  storage_gone};
  return api;
}

}  // namespace tent

TentEngine::TentEngine(tent::Engine& owner, tent::Exchange& exchange)
    : engine(owner), api(tent::c_functions()), collectives(exchange) {
  api.engine = this;
  collectives.on_abort = [this, &exchange](tent::GroupId group, std::int32_t rank,
                                           const std::string& why) {
    tent::aborted_by(this, exchange, group, rank, why);
  };
}
