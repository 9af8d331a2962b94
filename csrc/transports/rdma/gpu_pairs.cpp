// Stage: transport. See gpu_pairs.h.
#include "transports/rdma/gpu_pairs.h"

#include <pthread.h>

#include "transports/rdma/gpu_probe.h"

namespace tent {

GpuPairs::~GpuPairs() { stop(); }

void GpuPairs::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void GpuPairs::learn(const Verbs& verbs, const ibv::Pd* pd, const RdmaPort& port) {
  devices_.try_emplace(pd, Known{&verbs, port});
}

void GpuPairs::leave(const ibv::Pd* pd) { devices_.erase(pd); }

bool GpuPairs::works(const ibv::Pd* pd, Device gpu) {
  const auto device = devices_.find(pd);
  if (device == devices_.end()) return false;
  const std::string& name = device->second.port.device;
  const auto [found, fresh] = pairs_.try_emplace({name, gpu}, Pair{name, gpu, false, ""});
  if (!fresh) return found->second.tried && found->second.why_not.empty();
  ++under_way_;
  {
    const std::lock_guard lock(mutex_);
    asked_.push_back({device->second, gpu});
  }
  if (thread_.joinable()) {
    changed_.notify_all();
    return false;
  }
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "tent-rdma-gpu");
  return false;
}

std::vector<GpuPairs::Pair> GpuPairs::news() {
  std::vector<Pair> fresh;
  if (under_way_ == 0) return fresh;
  const std::lock_guard lock(mutex_);
  for (const Pair& pair : done_) {
    pairs_[{pair.port, pair.gpu}] = pair;
    fresh.push_back(pair);
  }
  under_way_ -= done_.size();
  done_.clear();
  return fresh;
}

std::vector<GpuPairs::Pair> GpuPairs::all() const {
  std::vector<Pair> found;
  for (const auto& [key, pair] : pairs_) found.push_back(pair);
  return found;
}

void GpuPairs::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stopping_ || !asked_.empty(); });
    if (stopping_) return;
    const Asked now = asked_.front();
    asked_.pop_front();
    lock.unlock();
    const Status status = probe_gpu(*now.device.verbs, now.device.port, now.gpu);
    lock.lock();
    done_.push_back({now.device.port.device, now.gpu, true, status.text});
  }
}

}  // namespace tent
