/* Stage: engine. The function table through which the process-group backend reaches the engine, so
 * that the engine never sees torch headers and the backend never sees the engine's. Plain C. All
 * functions may be called by any thread; none takes the GIL. The PyCapsule "torch_tent.engine"
 * holds a TentApi*, valid while the Engine object lives. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TENT_API_VERSION 3

typedef struct TentEngine TentEngine;

/* A transfer or a whole collective. Freed by `release`, which does not cancel it. */
typedef struct TentWork TentWork;

/* Memory whose end is known: what an RDMA device has of it may outlive a transfer. */
typedef struct TentStorage TentStorage;

typedef struct {
  uint64_t address;
  uint64_t bytes;
} TentBuffer;

/* Whose memory buffers are in. */
typedef struct {
  int32_t device;  /* a GPU, as the driver counts them here; TENT_HOST: ordinary memory */
  uint64_t stream; /* of the GPU: buffers are touched after what it has queued until the call */
} TentPlace;

#define TENT_HOST (-1)

enum TentDtype { /* the reductions know these */
                 TENT_U8,
                 TENT_I8,
                 TENT_I16,
                 TENT_I32,
                 TENT_I64,
                 TENT_F16,
                 TENT_BF16,
                 TENT_F32,
                 TENT_F64,
                 TENT_C64,
                 TENT_C128,
                 TENT_BOOL,
                 TENT_U16,
                 TENT_U32,
                 TENT_U64
};
enum TentReduce {
  TENT_SUM,
  TENT_AVG,
  TENT_PRODUCT,
  TENT_MIN,
  TENT_MAX,
  TENT_BAND,
  TENT_BOR,
  TENT_BXOR
};
enum TentCollective {
  TENT_BROADCAST,
  TENT_ALL_REDUCE,
  TENT_REDUCE,
  TENT_ALL_GATHER,
  TENT_GATHER,
  TENT_SCATTER,
  TENT_REDUCE_SCATTER,
  TENT_ALL_TO_ALL,
  TENT_BARRIER
};

enum TentStepKind {
  TENT_COMBINE, /* to = reduce(left, right); `to` may be one of them */
  TENT_DIVIDE,  /* to = to / by; integers round towards zero */
  TENT_COPY     /* to = left */
};

/* What is to be computed on a GPU for a collective; TENT_AVG adds. */
typedef struct {
  int32_t kind, reduce, dtype, by;
  uint64_t to, left, right, bytes; /* addresses */
  uint64_t collective;             /* for `computed`, with the number */
  uint32_t number;
} TentStep;

/* Who computes on the GPU: the engine has no kernels. `start` only takes note of the step: the
 * engine lock is held. Another thread queues it on a stream of the device and calls `computed`. */
typedef struct {
  void* context;
  void (*start)(void* context, const TentStep*);
  TentBuffer scratch; /* memory of the device: as much as scratch_bytes has said */
} TentCompute;

/* One collective of this rank. `inputs` and `outputs` have one buffer per rank where the collective
 * has pieces per rank (sizes may differ), else one. Buffers are contiguous. An in-place call gives
 * the same address in both. */
typedef struct {
  int32_t kind, reduce, dtype, root;
  const TentBuffer* inputs;
  size_t input_count;
  const TentBuffer* outputs;
  size_t output_count;
  uint64_t tag; /* the same on all ranks, never used twice in the context */
  int64_t timeout_ns;
  TentPlace place;     /* of all buffers */
  TentCompute compute; /* not for TENT_HOST; all that it names lives until the work has ended */
} TentCollectiveCall;

typedef struct {
  uint32_t version;
  TentEngine* engine;
  /* peers: engine peer id per rank; own rank's entry is ignored. Returns a group id. */
  uint64_t (*group_create)(TentEngine*, uint64_t context, int32_t rank, int32_t size,
                           const uint32_t* peers);
  void (*group_destroy)(TentEngine*, uint64_t group);
  /* Ends every outstanding work of the group with an error, at once. */
  void (*group_abort)(TentEngine*, uint64_t group, const char* why);
  TentWork* (*send)(TentEngine*, uint64_t group, int32_t to, uint64_t tag, TentBuffer, TentPlace,
                    int64_t timeout_ns);
  /* from < 0: any rank */
  TentWork* (*recv)(TentEngine*, uint64_t group, int32_t from, uint64_t tag, TentBuffer, TentPlace,
                    int64_t timeout_ns);
  TentWork* (*collective)(TentEngine*, uint64_t group, const TentCollectiveCall*);
  /* Memory that the call needs beside its buffers; 0 for one that makes no sense. */
  uint64_t (*scratch_bytes)(TentEngine*, uint64_t group, const TentCollectiveCall*);
  /* The step is queued on the stream of the collective's device; `error`: it is not, and why. */
  void (*computed)(TentEngine*, const TentStep*, uint64_t stream, const char* error);
  /* Whether buffers of a GPU can be used now, and the stream is not being captured; opens the
   * driver and the device the first time. 1, or 0 and why. */
  int (*can_use)(TentEngine*, TentPlace, const TentBuffer*, size_t count, char* why,
                 size_t why_bytes);
  int (*done)(TentWork*);
  /* Drives the engine; timeout_ns < 0: until it ends. 1 when ended, 0 when the time passed. */
  int (*wait)(TentWork*, int64_t timeout_ns);
  /* Once ended: a Code of core/types.h; `text` (may be null) gets why, `source` the sender's rank.
   */
  int32_t (*status)(TentWork*, char* text, size_t text_bytes, int32_t* source);
  void (*cancel)(TentWork*);
  /* Calls `fn(ctx)` once on the notifier thread when the work has ended; at once if it has. */
  void (*when_done)(TentWork*, void (*fn)(void*), void* ctx);
  void (*release)(TentWork*);
  /* A transfer is about to use memory that belongs together, from its first byte to its last.
   * `known`: what the last call for it returned, taken over; null at first. May return null. Takes
   * the engine lock for a short time. */
  TentStorage* (*storage_used)(TentEngine*, TentStorage* known, TentBuffer);
  /* The memory is about to be given back: when this returns no device has anything of it. Called
   * once for what storage_used returned, by any thread, also after the engine's end and in a child
   * of fork. Takes the engine lock, so its caller must not have it. */
  void (*storage_gone)(TentStorage*);
} TentApi;

#ifdef __cplusplus
}
#endif
