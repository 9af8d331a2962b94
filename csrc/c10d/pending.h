// Stage: c10d. What was started and may not have ended: the transfers and collectives of one Work,
// and the tensors they use. Shared by the Work, by its future and, when the caller lets the Work go
// early, by the notifier. Any thread. What always holds: tensors live until every part has ended;
// complete() acts once, on whichever thread comes first, and no lock of the engine is held then.
#pragma once

#include <ATen/core/ivalue.h>
#include <c10/core/Event.h>

#include <atomic>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "c10d/arithmetic.h"
#include "c10d/staging.h"
#include "engine/c_api.h"

namespace tent {

// Keeps the engine, a Python object, alive; needs no GIL to be passed around.
using EngineOwner = std::shared_ptr<void>;

// What all works of one process group share.
struct GroupLink {
  const TentApi* api = nullptr;
  EngineOwner owner;
  std::atomic<int> last_code{0};  // Code of core/types.h of the latest failure
  std::unique_ptr<Arithmetic> arithmetic;
};

class Pending : public std::enable_shared_from_this<Pending> {
 public:
  using Outputs = std::vector<std::vector<at::Tensor>>;

  explicit Pending(std::shared_ptr<GroupLink> link) : link_(std::move(link)) {}
  ~Pending();
  Pending(const Pending&) = delete;
  Pending& operator=(const Pending&) = delete;

  // While it is being made, on one thread:
  Staging staging;
  Outputs outputs;
  std::function<void()> at_end;  // for the profiler
  // `label` begins the error message; empty where the engine's own says everything.
  void add(::TentWork* part, std::string label = "");
  // A part is on this GPU: the future is one of its streams, too.
  void uses(const at::Device& device);

  // Drives the engine until all has ended; false when `timeout_ns` passed first (< 0: never does).
  bool wait(std::int64_t timeout_ns);
  bool is_done();              // all parts have ended
  std::exception_ptr error();  // null: none so far
  // Work that is queued on the caller's current streams from now on goes after what the end has
  // queued: copies to tensors of odd strides. Only after the end.
  void order_current_streams();
  int source() const { return source_; }  // rank that the last received message came from
  c10::intrusive_ptr<c10::ivalue::Future> future();
  void cancel();
  // Sees to its own end: the caller has let it go.
  void finish_alone();

 private:
  struct Part {
    ::TentWork* work;
    std::string label;
  };
  void complete();
  void arm();
  void complete_future();
  void record_written();
  std::exception_ptr error_of(const Part& part);

  const std::shared_ptr<GroupLink> link_;
  std::vector<Part> parts_;
  std::vector<at::Device> devices_;   // GPUs, each once
  std::vector<c10::Stream> streams_;  // one of each, for what the end queues; before done_
  std::vector<c10::Event> written_;   // what it has queued; before done_
  std::mutex mutex_;
  std::atomic<bool> done_{false};
  std::exception_ptr error_;                        // before done_
  int source_ = -1;                                 // before done_
  c10::intrusive_ptr<c10::ivalue::Future> future_;  // under mutex_
  bool future_told_ = false;                        // under mutex_
};

}  // namespace tent
