// Stage: transport. The part of libibverbs' binary interface that RDMA rails use, declared here so
// that no machine needs its header for building and one build runs everywhere. Values only.
// What always holds: verbs.cpp checks every layout against <infiniband/verbs.h> where that is
// installed. The structs that the library makes are declared as far as they are looked into.
#pragma once

#include <pthread.h>

#include <cstddef>
#include <cstdint>

namespace tent::ibv {

struct Device;  // opaque
struct Context;
struct Ah;
struct Srq;

union Gid {
  std::uint8_t raw[16];
  std::uint64_t words[2];
};

enum WcStatus : std::uint32_t {
  kWcSuccess = 0,
  kWcFlushed = 5,
  kWcRemoteAccess = 10,
  kWcRetryExceeded = 12,
};

struct Wc {
  std::uint64_t wr_id;
  WcStatus status;
  std::uint32_t opcode;  // valid on success only, as all that follows but qp_num
  std::uint32_t vendor_err;
  std::uint32_t byte_len;
  std::uint32_t imm_data;
  std::uint32_t qp_num;
  std::uint32_t src_qp;
  unsigned int wc_flags;
  std::uint16_t pkey_index;
  std::uint16_t slid;
  std::uint8_t sl;
  std::uint8_t dlid_path_bits;
};

struct Sge {
  std::uint64_t addr;
  std::uint32_t length;
  std::uint32_t lkey;
};

enum WrOpcode : std::uint32_t { kSend = 2, kRdmaRead = 4 };
enum SendFlags : unsigned int { kSignaled = 1u << 1, kInline = 1u << 3 };

struct SendWr {
  std::uint64_t wr_id;
  SendWr* next;
  Sge* sg_list;
  int num_sge;
  WrOpcode opcode;
  unsigned int send_flags;
  std::uint32_t imm_data;
  union {
    struct {
      std::uint64_t remote_addr;
      std::uint32_t rkey;
    } rdma;
    struct {
      std::uint64_t remote_addr, compare_add, swap;
      std::uint32_t rkey;
    } atomic;
  } wr;
  std::uint32_t remote_srqn;
  struct {  // of binding memory windows, and of segmentation: never used
    void* first;
    std::uint64_t more[5];
  } rest;
};

struct RecvWr {
  std::uint64_t wr_id;
  RecvWr* next;
  Sge* sg_list;
  int num_sge;
};

struct Cq {
  Context* context;
  void* channel;
  void* cq_context;
  std::uint32_t handle;
  int cqe;
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  std::uint32_t comp_events_completed;
  std::uint32_t async_events_completed;
};

struct Pd {
  Context* context;
  std::uint32_t handle;
};

struct Mr {
  Context* context;
  Pd* pd;
  void* addr;
  std::size_t length;
  std::uint32_t handle;
  std::uint32_t lkey;
  std::uint32_t rkey;
};

struct CompChannel {
  Context* context;
  int fd;
  int refcnt;
};

enum QpState : std::uint32_t { kReset = 0, kInit = 1, kRtr = 2, kRts = 3, kErr = 6 };
enum QpType : std::uint32_t { kRc = 2 };

struct Qp {
  Context* context;
  void* qp_context;
  Pd* pd;
  Cq* send_cq;
  Cq* recv_cq;
  Srq* srq;
  std::uint32_t handle;
  std::uint32_t qp_num;
  QpState state;
  QpType qp_type;
  pthread_mutex_t mutex;
  pthread_cond_t cond;
  std::uint32_t events_completed;
};

struct QpCap {
  std::uint32_t max_send_wr, max_recv_wr, max_send_sge, max_recv_sge, max_inline_data;
};

struct QpInitAttr {
  void* qp_context;
  Cq* send_cq;
  Cq* recv_cq;
  Srq* srq;
  QpCap cap;
  QpType qp_type;
  int sq_sig_all;
};

struct GlobalRoute {
  Gid dgid;
  std::uint32_t flow_label;
  std::uint8_t sgid_index, hop_limit, traffic_class;
};

struct AhAttr {
  GlobalRoute grh;
  std::uint16_t dlid;
  std::uint8_t sl, src_path_bits, static_rate, is_global, port_num;
};

struct QpAttr {
  QpState qp_state, cur_qp_state;
  std::uint32_t path_mtu;
  std::uint32_t path_mig_state;
  std::uint32_t qkey, rq_psn, sq_psn, dest_qp_num;
  unsigned int qp_access_flags;
  QpCap cap;
  AhAttr ah_attr, alt_ah_attr;
  std::uint16_t pkey_index, alt_pkey_index;
  std::uint8_t en_sqd_async_notify, sq_draining, max_rd_atomic, max_dest_rd_atomic, min_rnr_timer,
      port_num, timeout, retry_cnt, rnr_retry, alt_port_num, alt_timeout;
  std::uint32_t rate_limit;
};

enum QpAttrMask : int {
  kMaskState = 1 << 0,
  kMaskAccessFlags = 1 << 3,
  kMaskPkeyIndex = 1 << 4,
  kMaskPort = 1 << 5,
  kMaskAv = 1 << 7,
  kMaskPathMtu = 1 << 8,
  kMaskTimeout = 1 << 9,
  kMaskRetryCnt = 1 << 10,
  kMaskRnrRetry = 1 << 11,
  kMaskRqPsn = 1 << 12,
  kMaskMaxRdAtomic = 1 << 13,
  kMaskMinRnrTimer = 1 << 15,
  kMaskSqPsn = 1 << 16,
  kMaskMaxDestRdAtomic = 1 << 17,
  kMaskDestQpn = 1 << 20,
};

enum Access : int { kLocalWrite = 1, kRemoteRead = 1 << 2 };

struct DeviceAttr {  // as much as is read, and room for what later libraries may append
  char fw_ver[64];
  std::uint64_t node_guid, sys_image_guid, max_mr_size, page_size_cap;
  std::uint32_t vendor_id, vendor_part_id, hw_ver;
  int max_qp, max_qp_wr;
  unsigned int device_cap_flags;
  int max_sge, max_sge_rd, max_cq, max_cqe, max_mr, max_pd, max_qp_rd_atom, max_ee_rd_atom,
      max_res_rd_atom, max_qp_init_rd_atom;
  std::uint8_t more[256];
};

inline constexpr std::uint8_t kLinkInfiniband = 1, kLinkEthernet = 2;
inline constexpr std::uint32_t kPortActive = 4;

struct PortAttr {
  std::uint32_t state, max_mtu, active_mtu;
  int gid_tbl_len;
  std::uint32_t port_cap_flags, max_msg_sz, bad_pkey_cntr, qkey_viol_cntr;
  std::uint16_t pkey_tbl_len, lid, sm_lid;
  std::uint8_t lmc, max_vl_num, sm_sl, subnet_timeout, init_type_reply, active_width, active_speed,
      phys_state, link_layer, flags;
  std::uint16_t port_cap_flags2;
  std::uint8_t more[64];
};

enum EventType : std::uint32_t {
  kEventCqErr = 0,
  kEventQpFatal = 1,
  kEventQpAccessErr = 3,
  kEventPathMigErr = 7,
  kEventDeviceFatal = 8,
  kEventPortActive = 9,
  kEventPortErr = 10,
  kEventLidChange = 11,
  kEventGidChange = 18,
};

struct AsyncEvent {
  union {
    Cq* cq;
    Qp* qp;
    int port_num;
  } element;
  EventType event_type;
};

// The operations that the header calls through the context. What is not used has no type.
struct ContextOps {
  void* unused_before_poll[11];
  int (*poll_cq)(Cq*, int, Wc*);
  int (*req_notify_cq)(Cq*, int);
  void* unused_before_post[12];
  int (*post_send)(Qp*, SendWr*, SendWr**);
  int (*post_recv)(Qp*, RecvWr*, RecvWr**);
  void* unused_after_post[5];
};

struct Context {
  Device* device;
  ContextOps ops;
  int cmd_fd;
  int async_fd;
  int num_comp_vectors;
  pthread_mutex_t mutex;
  void* abi_compat;
};

}  // namespace tent::ibv
