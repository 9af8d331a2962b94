// Stage: transport. libibverbs, opened at run time: the table of its functions. Made once per
// engine, when the first RDMA rail is asked for; any thread may call through it.
// What always holds: a Verbs that exists has every function but those that say so; where the
// library or one of them is missing, open() says which, and what to install.
#pragma once

#include <memory>
#include <string>

#include "core/types.h"
#include "drivers/verbs_abi.h"

namespace tent {

class Verbs {
 public:
  static constexpr const char* kLibrary = "libibverbs.so.1";

  // `library`: the file to open; "" for the system's. Null when it cannot be used: `why` says it.
  static std::unique_ptr<Verbs> open(const std::string& library, Status& why);
  ~Verbs();
  Verbs(const Verbs&) = delete;
  Verbs& operator=(const Verbs&) = delete;

  ibv::Device** (*get_device_list)(int*) = nullptr;
  void (*free_device_list)(ibv::Device**) = nullptr;
  const char* (*get_device_name)(ibv::Device*) = nullptr;
  ibv::Context* (*open_device)(ibv::Device*) = nullptr;
  int (*close_device)(ibv::Context*) = nullptr;
  int (*query_device)(ibv::Context*, ibv::DeviceAttr*) = nullptr;
  int (*query_port)(ibv::Context*, std::uint8_t, ibv::PortAttr*) = nullptr;
  int (*query_gid)(ibv::Context*, std::uint8_t, int, ibv::Gid*) = nullptr;
  ibv::Pd* (*alloc_pd)(ibv::Context*) = nullptr;
  int (*dealloc_pd)(ibv::Pd*) = nullptr;
  ibv::Mr* (*reg_mr)(ibv::Pd*, void*, std::size_t, int) = nullptr;
  // Null where the library is older than rdma-core 34.
  ibv::Mr* (*reg_dmabuf_mr)(ibv::Pd*, std::uint64_t, std::size_t, std::uint64_t, int,
                            int) = nullptr;
  int (*dereg_mr)(ibv::Mr*) = nullptr;
  ibv::CompChannel* (*create_comp_channel)(ibv::Context*) = nullptr;
  int (*destroy_comp_channel)(ibv::CompChannel*) = nullptr;
  ibv::Cq* (*create_cq)(ibv::Context*, int, void*, ibv::CompChannel*, int) = nullptr;
  int (*destroy_cq)(ibv::Cq*) = nullptr;
  int (*get_cq_event)(ibv::CompChannel*, ibv::Cq**, void**) = nullptr;
  void (*ack_cq_events)(ibv::Cq*, unsigned int) = nullptr;
  ibv::Qp* (*create_qp)(ibv::Pd*, ibv::QpInitAttr*) = nullptr;
  int (*modify_qp)(ibv::Qp*, ibv::QpAttr*, int) = nullptr;
  int (*destroy_qp)(ibv::Qp*) = nullptr;
  int (*get_async_event)(ibv::Context*, ibv::AsyncEvent*) = nullptr;
  void (*ack_async_event)(ibv::AsyncEvent*) = nullptr;
  const char* (*wc_status_str)(ibv::WcStatus) = nullptr;

  // What the header has as inline functions.
  static int poll_cq(ibv::Cq* cq, int count, ibv::Wc* wc) {
    return cq->context->ops.poll_cq(cq, count, wc);
  }
  static int req_notify_cq(ibv::Cq* cq) { return cq->context->ops.req_notify_cq(cq, 0); }
  static int post_send(ibv::Qp* qp, ibv::SendWr* wr, ibv::SendWr** bad) {
    return qp->context->ops.post_send(qp, wr, bad);
  }
  static int post_recv(ibv::Qp* qp, ibv::RecvWr* wr, ibv::RecvWr** bad) {
    return qp->context->ops.post_recv(qp, wr, bad);
  }

 private:
  Verbs() = default;
  bool resolve(std::string& missing);

  void* library_ = nullptr;
};

}  // namespace tent
