// Stage: c10d. Tells engines when the memory of a tensor's storage ends, so that what RDMA devices
// have registered of it may stay between transfers.
// used() with the GIL, which keeps two of its calls apart; the end on whatever thread frees the
// memory. Lock order: the GIL, the engine's lock; the book's lock is taken last and alone.
//
// How the end is known: the memory of torch's CPU allocator carries a function that frees it. Here
// another one takes its place, which tells the engines first, and then calls it. So it does not
// matter how the memory ends: with the last tensor of its storage, because the storage is resized,
// freed by resizing to nothing (FSDP), moved into shared memory, or handed on to a copy-on-write
// clone. A weak reference to the storage would not be enough: a storage that was resized away and
// back lives on, with other pages at the same address. Memory from elsewhere (NumPy, DLPack,
// pinned, shared) keeps its own function, and nothing is kept of it: nobody would tell.
#pragma once

#include <ATen/core/Tensor.h>

#include "engine/c_api.h"

namespace tent {

// A transfer is about to use this tensor.
void used(const at::Tensor& tensor, const TentApi& api);

}  // namespace tent
