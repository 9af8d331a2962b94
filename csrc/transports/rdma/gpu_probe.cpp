// Stage: transport. See gpu_probe.h.
#include "transports/rdma/gpu_probe.h"

#include <sched.h>
#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <string>

#include "drivers/cuda.h"
#include "transports/descriptor.h"
#include "transports/rdma/gpu_memory.h"

namespace tent {
namespace {

constexpr std::uint32_t kBytes = 64u << 10;
constexpr auto kPatience = std::chrono::seconds(1);
constexpr std::uint32_t kFirstPacket = 77;

// Everything that a trial makes, and its end.
class Trial {
 public:
  Trial(const Verbs& verbs, const RdmaPort& port, const Gpu& gpu)
      : verbs_(verbs), port_(port), gpu_(gpu), cuda_(gpu.cuda()), api_(gpu.api()) {}
  ~Trial();
  Trial(const Trial&) = delete;
  Trial& operator=(const Trial&) = delete;

  Status run();

 private:
  Status open();
  Status make_memory();
  Status make_pairs();
  Status join(ibv::Qp* qp, const ibv::Qp* other);
  Status read(std::uint64_t to, std::uint32_t lkey, std::uint64_t from, std::uint32_t rkey);
  Status copy(bool into);
  void fill(int seed);
  Status compare(int seed, const char* step) const;

  const Verbs& verbs_;
  const RdmaPort port_;
  const Gpu& gpu_;
  const Cuda& cuda_;
  const CudaApi& api_;
  ibv::Context* context_ = nullptr;
  ibv::Pd* pd_ = nullptr;
  ibv::CompChannel* channel_ = nullptr;
  ibv::Cq* cq_ = nullptr;
  ibv::Qp* pairs_[2] = {nullptr, nullptr};  // joined with each other
  ibv::PortAttr attr_{};
  ibv::Gid gid_{};
  void* host_ = MAP_FAILED;
  bool locked_ = false;
  CudaAddress memory_ = 0;
  CudaStream stream_ = nullptr;
  ibv::Mr *host_in_ = nullptr, *host_out_ = nullptr, *gpu_in_ = nullptr, *gpu_out_ = nullptr;
};

Trial::~Trial() {
  for (ibv::Qp* qp : pairs_) {
    if (qp != nullptr) verbs_.destroy_qp(qp);  // whatever was under way has ended after this
  }
  for (ibv::Mr* mr : {host_in_, host_out_, gpu_in_, gpu_out_}) {
    if (mr != nullptr) verbs_.dereg_mr(mr);
  }
  if (cq_ != nullptr) verbs_.destroy_cq(cq_);
  if (channel_ != nullptr) verbs_.destroy_comp_channel(channel_);
  if (pd_ != nullptr) verbs_.dealloc_pd(pd_);
  if (context_ != nullptr) verbs_.close_device(context_);
  if (stream_ != nullptr) {
    api_.stream_synchronize(stream_);
    api_.stream_destroy(stream_);
  }
  if (memory_ != 0) api_.mem_free(memory_);
  if (locked_) api_.host_unregister(host_);
  if (host_ != MAP_FAILED) ::munmap(host_, kBytes);
}

Status Trial::open() {
  int count = 0;
  ibv::Device** list = verbs_.get_device_list(&count);
  for (int i = 0; list != nullptr && i < count; ++i) {
    if (port_.device == verbs_.get_device_name(list[i])) context_ = verbs_.open_device(list[i]);
  }
  if (list != nullptr) verbs_.free_device_list(list);
  if (context_ == nullptr || (pd_ = verbs_.alloc_pd(context_)) == nullptr ||
      (channel_ = verbs_.create_comp_channel(context_)) == nullptr ||
      (cq_ = verbs_.create_cq(context_, 16, nullptr, channel_, 0)) == nullptr ||
      verbs_.query_port(context_, port_.port, &attr_) != 0 ||
      verbs_.query_gid(context_, port_.port, port_.gid_index, &gid_) != 0) {
    return failed(errno_text("the device cannot be opened for a trial"));
  }
  return {};
}

Status Trial::make_memory() {
  host_ = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (host_ == MAP_FAILED) return failed("the system has no memory");
  Status status =
      cuda_.check(api_.host_register(host_, kBytes, kCudaHostRegisterPortable), "page-locking");
  if (!status.ok()) return status;
  locked_ = true;
  status = cuda_.check(api_.mem_alloc(&memory_, kBytes), "allocating memory of the GPU");
  if (status.ok()) {
    status = cuda_.check(api_.stream_create(&stream_, kCudaStreamNonBlocking, 0), "a stream");
  }
  if (!status.ok()) return status;
  const auto at = reinterpret_cast<std::uint64_t>(host_);
  host_in_ = register_memory(verbs_, pd_, at, at + kBytes, ibv::kLocalWrite, kHost);
  host_out_ = register_memory(verbs_, pd_, at, at + kBytes, ibv::kRemoteRead, kHost);
  if (host_in_ == nullptr || host_out_ == nullptr) {
    return failed(registration_refused(errno, kBytes));
  }
  const auto device = Device(gpu_.device());
  gpu_in_ = register_memory(verbs_, pd_, memory_, memory_ + kBytes, ibv::kLocalWrite, device);
  gpu_out_ = register_memory(verbs_, pd_, memory_, memory_ + kBytes, ibv::kRemoteRead, device);
  if (gpu_in_ != nullptr && gpu_out_ != nullptr) return {};
  return failed(errno_text("its memory cannot be registered") +
                ": it takes dma-buf (the open kernel modules of NVIDIA's driver, Linux 5.12, "
                "rdma-core 34) or the module nvidia-peermem");
}

Status Trial::join(ibv::Qp* qp, const ibv::Qp* other) {
  ibv::QpAttr init{}, receive{}, send{};
  init.qp_state = ibv::kInit;
  init.port_num = port_.port;
  init.qp_access_flags = ibv::kRemoteRead;
  receive.qp_state = ibv::kRtr;
  receive.path_mtu = attr_.active_mtu;
  receive.dest_qp_num = other->qp_num;
  receive.rq_psn = kFirstPacket;
  receive.max_dest_rd_atomic = 1;
  receive.min_rnr_timer = 12;
  receive.ah_attr.dlid = attr_.lid;
  receive.ah_attr.port_num = port_.port;
  receive.ah_attr.is_global = attr_.link_layer == ibv::kLinkEthernet || attr_.lid == 0;
  receive.ah_attr.grh.dgid = gid_;
  receive.ah_attr.grh.sgid_index = port_.gid_index;
  receive.ah_attr.grh.hop_limit = 1;
  send.qp_state = ibv::kRts;
  send.sq_psn = kFirstPacket;
  send.timeout = 14;
  send.retry_cnt = send.rnr_retry = 3;
  send.max_rd_atomic = 1;
  const bool joined =
      verbs_.modify_qp(
          qp, &init,
          ibv::kMaskState | ibv::kMaskPkeyIndex | ibv::kMaskPort | ibv::kMaskAccessFlags) == 0 &&
      verbs_.modify_qp(qp, &receive,
                       ibv::kMaskState | ibv::kMaskAv | ibv::kMaskPathMtu | ibv::kMaskDestQpn |
                           ibv::kMaskRqPsn | ibv::kMaskMaxDestRdAtomic | ibv::kMaskMinRnrTimer) ==
          0 &&
      verbs_.modify_qp(qp, &send,
                       ibv::kMaskState | ibv::kMaskTimeout | ibv::kMaskRetryCnt |
                           ibv::kMaskRnrRetry | ibv::kMaskSqPsn | ibv::kMaskMaxRdAtomic) == 0;
  return joined ? Status{} : failed(errno_text("two queue pairs of the device cannot be joined"));
}

Status Trial::make_pairs() {
  for (ibv::Qp*& qp : pairs_) {
    ibv::QpInitAttr wanted{};
    wanted.send_cq = wanted.recv_cq = cq_;
    wanted.qp_type = ibv::kRc;
    wanted.cap = {4, 1, 1, 1, 0};
    qp = verbs_.create_qp(pd_, &wanted);
    if (qp == nullptr) return failed(errno_text("no queue pair for a trial"));
  }
  const Status first = join(pairs_[0], pairs_[1]);
  return first.ok() ? join(pairs_[1], pairs_[0]) : first;
}

Status Trial::read(std::uint64_t to, std::uint32_t lkey, std::uint64_t from, std::uint32_t rkey) {
  ibv::Sge sge{to, kBytes, lkey};
  ibv::SendWr wr{};
  wr.sg_list = &sge;
  wr.num_sge = 1;
  wr.opcode = ibv::kRdmaRead;
  wr.send_flags = ibv::kSignaled;
  wr.wr.rdma = {from, rkey};
  ibv::SendWr* bad = nullptr;
  if (Verbs::post_send(pairs_[0], &wr, &bad) != 0) return failed("the device takes no work");
  const auto end = std::chrono::steady_clock::now() + kPatience;
  ibv::Wc wc{};
  while (Verbs::poll_cq(cq_, 1, &wc) == 0) {
    if (std::chrono::steady_clock::now() > end) return failed("a trial read did not end in 1 s");
    sched_yield();
  }
  if (wc.status == ibv::kWcSuccess) return {};
  return failed(std::string("a trial read failed: ") + verbs_.wc_status_str(wc.status));
}

Status Trial::copy(bool into) {
  const Status status = cuda_.check(into ? api_.copy_in(memory_, host_, kBytes, stream_)
                                         : api_.copy_out(host_, memory_, kBytes, stream_),
                                    "a copy");
  if (!status.ok()) return status;
  return cuda_.check(api_.stream_synchronize(stream_), "a copy");
}

void Trial::fill(int seed) {
  auto* bytes = static_cast<std::uint8_t*>(host_);
  for (std::uint32_t i = 0; i < kBytes; ++i) bytes[i] = std::uint8_t(i * 31 + i / 256 + seed);
}

Status Trial::compare(int seed, const char* step) const {
  const auto* bytes = static_cast<const std::uint8_t*>(host_);
  for (std::uint32_t i = 0; i < kBytes; ++i) {
    if (bytes[i] == std::uint8_t(i * 31 + i / 256 + seed)) continue;
    return failed(std::string("its memory can be registered, but ") + step + " gave wrong bytes");
  }
  return {};
}

Status Trial::run() {
  Status status = open();
  if (status.ok()) status = make_memory();
  if (status.ok()) status = make_pairs();
  const auto host = reinterpret_cast<std::uint64_t>(host_);
  // The device reads the GPU's memory ...
  fill(1);
  if (status.ok()) status = copy(true);
  if (!status.ok()) return status;
  fill(2);
  status = read(host, host_in_->lkey, memory_, gpu_out_->rkey);
  if (status.ok()) status = compare(1, "reading it");
  // ... and writes it.
  if (!status.ok()) return status;
  fill(3);
  status = read(memory_, gpu_in_->lkey, host, host_out_->rkey);
  if (status.ok()) status = gpu_.settle_writes();
  fill(4);
  if (status.ok()) status = copy(false);
  return status.ok() ? compare(3, "writing it") : status;
}

}  // namespace

Status probe_gpu(const Verbs& verbs, const RdmaPort& port, Device device) {
  const Cuda* cuda = Cuda::loaded();
  if (cuda == nullptr) return failed("the CUDA driver was not opened");
  Status status;
  const auto gpu = Gpu::open(*cuda, device, status);
  if (!gpu) return status;
  const OnGpu on(*gpu);
  status = gpu->settle_writes();  // whether it knows how, before anything is moved
  if (!status.ok()) return status;
  Trial trial(verbs, port, *gpu);
  return trial.run();
}

}  // namespace tent
