// Stage: transport. Whether an RDMA device can move the bytes of a GPU, found out by doing it: a
// little memory is registered, read by the device, written by it, and compared. Registering alone
// proves nothing: some machines register what the device then cannot reach.
// Any thread but one that must not wait: it takes milliseconds, and a second where nothing comes.
// What always holds: it uses a context and queue pairs of its own, which have ended when it
// returns.
#pragma once

#include "core/origin.h"
#include "core/types.h"
#include "drivers/verbs.h"
#include "transports/rdma/link.h"

namespace tent {

// Ok, or which step failed and how.
Status probe_gpu(const Verbs& verbs, const RdmaPort& port, Device gpu);

}  // namespace tent
