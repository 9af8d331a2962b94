// Stage: transport. See verbs.h.
#include "drivers/verbs.h"

#include <dlfcn.h>

#if __has_include(<infiniband/verbs.h>)
#include <infiniband/verbs.h>

// Our declarations against the library's own, wherever its header is at hand.
namespace tent::ibv {
#define TENT_SAME(ours, theirs) \
  static_assert(sizeof(ours) == sizeof(theirs) && alignof(ours) == alignof(theirs))
#define TENT_AT(ours, field, theirs, name) \
  static_assert(offsetof(ours, field) == offsetof(theirs, name))
TENT_SAME(Gid, ibv_gid);
TENT_SAME(Wc, ibv_wc);
TENT_AT(Wc, status, ibv_wc, status);
TENT_AT(Wc, byte_len, ibv_wc, byte_len);
TENT_AT(Wc, qp_num, ibv_wc, qp_num);
TENT_SAME(Sge, ibv_sge);
TENT_AT(Sge, lkey, ibv_sge, lkey);
TENT_SAME(SendWr, ibv_send_wr);
TENT_AT(SendWr, sg_list, ibv_send_wr, sg_list);
TENT_AT(SendWr, opcode, ibv_send_wr, opcode);
TENT_AT(SendWr, send_flags, ibv_send_wr, send_flags);
TENT_AT(SendWr, wr.rdma.remote_addr, ibv_send_wr, wr.rdma.remote_addr);
TENT_AT(SendWr, wr.rdma.rkey, ibv_send_wr, wr.rdma.rkey);
TENT_SAME(RecvWr, ibv_recv_wr);
TENT_SAME(Cq, ibv_cq);
TENT_SAME(Pd, ibv_pd);
TENT_SAME(Mr, ibv_mr);
TENT_AT(Mr, lkey, ibv_mr, lkey);
TENT_AT(Mr, rkey, ibv_mr, rkey);
TENT_SAME(CompChannel, ibv_comp_channel);
TENT_AT(CompChannel, fd, ibv_comp_channel, fd);
TENT_SAME(Qp, ibv_qp);
TENT_AT(Qp, qp_num, ibv_qp, qp_num);
TENT_SAME(QpInitAttr, ibv_qp_init_attr);
TENT_AT(QpInitAttr, cap, ibv_qp_init_attr, cap);
TENT_AT(QpInitAttr, qp_type, ibv_qp_init_attr, qp_type);
TENT_SAME(GlobalRoute, ibv_global_route);
TENT_SAME(AhAttr, ibv_ah_attr);
TENT_AT(AhAttr, is_global, ibv_ah_attr, is_global);
TENT_SAME(QpAttr, ibv_qp_attr);
TENT_AT(QpAttr, ah_attr, ibv_qp_attr, ah_attr);
TENT_AT(QpAttr, max_rd_atomic, ibv_qp_attr, max_rd_atomic);
TENT_AT(QpAttr, timeout, ibv_qp_attr, timeout);
static_assert(sizeof(DeviceAttr) >= sizeof(ibv_device_attr));
TENT_AT(DeviceAttr, max_qp_wr, ibv_device_attr, max_qp_wr);
TENT_AT(DeviceAttr, max_cqe, ibv_device_attr, max_cqe);
TENT_AT(DeviceAttr, max_qp_rd_atom, ibv_device_attr, max_qp_rd_atom);
TENT_AT(DeviceAttr, max_qp_init_rd_atom, ibv_device_attr, max_qp_init_rd_atom);
static_assert(sizeof(PortAttr) >= sizeof(ibv_port_attr));
TENT_AT(PortAttr, active_mtu, ibv_port_attr, active_mtu);
TENT_AT(PortAttr, lid, ibv_port_attr, lid);
TENT_AT(PortAttr, link_layer, ibv_port_attr, link_layer);
TENT_SAME(AsyncEvent, ibv_async_event);
TENT_AT(AsyncEvent, event_type, ibv_async_event, event_type);
TENT_SAME(ContextOps, ibv_context_ops);
TENT_AT(ContextOps, poll_cq, ibv_context_ops, poll_cq);
TENT_AT(ContextOps, req_notify_cq, ibv_context_ops, req_notify_cq);
TENT_AT(ContextOps, post_send, ibv_context_ops, post_send);
TENT_AT(ContextOps, post_recv, ibv_context_ops, post_recv);
TENT_SAME(Context, ibv_context);
TENT_AT(Context, async_fd, ibv_context, async_fd);
static_assert(int(kSend) == IBV_WR_SEND && int(kRdmaRead) == IBV_WR_RDMA_READ);
static_assert(int(kSignaled) == IBV_SEND_SIGNALED && int(kInline) == IBV_SEND_INLINE);
static_assert(int(kErr) == IBV_QPS_ERR && int(kRts) == IBV_QPS_RTS && int(kRc) == IBV_QPT_RC);
static_assert(int(kMaskDestQpn) == IBV_QP_DEST_QPN && int(kMaskAv) == IBV_QP_AV);
static_assert(int(kMaskMaxDestRdAtomic) == IBV_QP_MAX_DEST_RD_ATOMIC);
static_assert(int(kMaskMaxRdAtomic) == IBV_QP_MAX_QP_RD_ATOMIC);
static_assert(int(kMaskMinRnrTimer) == IBV_QP_MIN_RNR_TIMER && int(kMaskSqPsn) == IBV_QP_SQ_PSN);
static_assert(int(kRemoteRead) == IBV_ACCESS_REMOTE_READ);
static_assert(int(kEventPortErr) == IBV_EVENT_PORT_ERR);
static_assert(int(kEventGidChange) == IBV_EVENT_GID_CHANGE);
static_assert(int(kWcFlushed) == IBV_WC_WR_FLUSH_ERR);
static_assert(int(kWcRemoteAccess) == IBV_WC_REM_ACCESS_ERR);
static_assert(int(kWcRetryExceeded) == IBV_WC_RETRY_EXC_ERR);
static_assert(int(kLinkEthernet) == IBV_LINK_LAYER_ETHERNET && int(kPortActive) == IBV_PORT_ACTIVE);
#undef TENT_SAME
#undef TENT_AT
}  // namespace tent::ibv
#endif

namespace tent {

std::unique_ptr<Verbs> Verbs::open(const std::string& library, Status& why) {
  const std::string name = library.empty() ? kLibrary : library;
  std::unique_ptr<Verbs> verbs(new Verbs);
  verbs->library_ = ::dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (verbs->library_ == nullptr) {
    const char* reason = ::dlerror();
    why = {Code::Failed,
           std::string("RDMA needs libibverbs (Debian and Ubuntu: apt-get install libibverbs1 "
                       "ibverbs-providers): ") +
               (reason != nullptr ? reason : name.c_str()),
           ""};
    return nullptr;
  }
  std::string missing;
  if (!verbs->resolve(missing)) {
    why = {Code::Failed, name + " has no " + missing + ": install a newer libibverbs", ""};
    return nullptr;
  }
  return verbs;
}

Verbs::~Verbs() {
  if (library_ != nullptr) ::dlclose(library_);
}

bool Verbs::resolve(std::string& missing) {
  const auto take = [&](auto& function, const char* name) {
    function =
        reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library_, name));
    if (function == nullptr && missing.empty()) missing = name;
  };
  take(get_device_list, "ibv_get_device_list");
  take(free_device_list, "ibv_free_device_list");
  take(get_device_name, "ibv_get_device_name");
  take(open_device, "ibv_open_device");
  take(close_device, "ibv_close_device");
  take(query_device, "ibv_query_device");
  take(query_port, "ibv_query_port");
  take(query_gid, "ibv_query_gid");
  take(alloc_pd, "ibv_alloc_pd");
  take(dealloc_pd, "ibv_dealloc_pd");
  take(reg_mr, "ibv_reg_mr");
  take(dereg_mr, "ibv_dereg_mr");
  reg_dmabuf_mr = reinterpret_cast<decltype(reg_dmabuf_mr)>(::dlsym(library_, "ibv_reg_dmabuf_mr"));
  take(create_comp_channel, "ibv_create_comp_channel");
  take(destroy_comp_channel, "ibv_destroy_comp_channel");
  take(create_cq, "ibv_create_cq");
  take(destroy_cq, "ibv_destroy_cq");
  take(get_cq_event, "ibv_get_cq_event");
  take(ack_cq_events, "ibv_ack_cq_events");
  take(create_qp, "ibv_create_qp");
  take(modify_qp, "ibv_modify_qp");
  take(destroy_qp, "ibv_destroy_qp");
  take(get_async_event, "ibv_get_async_event");
  take(ack_async_event, "ibv_ack_async_event");
  take(wc_status_str, "ibv_wc_status_str");
  return missing.empty();
}

}  // namespace tent
