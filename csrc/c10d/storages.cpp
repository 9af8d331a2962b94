// Stage: c10d. See storages.h.
#include "c10d/storages.h"

#include <c10/core/CPUAllocator.h>
#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tent {
namespace {

struct Listener {
  TentEngine* engine = nullptr;  // only compared
  TentStorage* storage = nullptr;
  void (*gone)(TentStorage*) = nullptr;
};

struct Watched {
  c10::DeleterFnPtr free = nullptr;  // torch's own
  std::vector<Listener> listeners;
};

struct Book {  // by address
  std::mutex mutex;
  std::unordered_map<void*, Watched> entries;
};

// Never destroyed: tensors are freed while the process ends, too.
Book& book() {
  static Book* const made = [] {
    static Book* const kept = new Book;
    // A child must not find it locked by a thread that it does not have.
    pthread_atfork([] { kept->mutex.lock(); }, [] { kept->mutex.unlock(); },
                   [] { kept->mutex.unlock(); });
    return kept;
  }();
  return *made;
}

Watched take(void* memory) {
  const std::lock_guard lock(book().mutex);
  auto node = book().entries.extract(memory);
  return node.empty() ? Watched{} : std::move(node.mapped());
}

void tell(const Watched& ended) {
  for (const Listener& each : ended.listeners) each.gone(each.storage);
}

void end(void* memory) {
  const Watched ended = take(memory);
  tell(ended);
  ended.free(memory);
}

// Null: it is memory of which nothing can be known. Its entry stays where it is until end().
Watched* watch(at::DataPtr& memory) {
  void* const address = memory.get();
  if (address == nullptr || memory.get_context() != address) return nullptr;
  if (memory.get_deleter() != &end) {
    const c10::DeleterFnPtr free = c10::GetCPUAllocator()->raw_deleter();
    if (free == nullptr || memory.get_deleter() != free) return nullptr;
    tell(take(address));  // freed behind our back, by whoever took its context away
    const std::lock_guard lock(book().mutex);
    book().entries[address].free = free;
    if (!memory.compare_exchange_deleter(free, &end)) return nullptr;
  }
  const std::lock_guard lock(book().mutex);
  return &book().entries[address];
}

}  // namespace

void used(const at::Tensor& tensor, const TentApi& api) {
  if (!tensor.device().is_cpu() || !tensor.has_storage()) return;
  c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
  at::DataPtr& memory = storage->_mutable_data_ptr_no_checks();
  Watched* watched = watch(memory);
  if (watched == nullptr) return;
  std::vector<Listener>& all = watched->listeners;
  auto mine = std::find_if(all.begin(), all.end(),
                           [&](const Listener& each) { return each.engine == api.engine; });
  if (mine == all.end()) mine = all.insert(all.end(), {api.engine, nullptr, api.storage_gone});
  const TentBuffer whole{reinterpret_cast<std::uint64_t>(memory.get()), storage->nbytes()};
  mine->storage = api.storage_used(api.engine, mine->storage, whole);
  if (mine->storage == nullptr) all.erase(mine);
}

}  // namespace tent
