// Stage: transport. Memory that two processes map: memfds that cannot shrink, so that neither can
// make the other fault. Any thread.
#pragma once

#include <cstddef>

#include "transports/descriptor.h"

namespace tent {

// A zeroed memfd of fixed size. Empty when the kernel refuses; errno says why.
Descriptor make_sealed(const char* name, std::size_t bytes);

// Seals memory that was made elsewhere: it never shrinks, and no new mapping may write to it.
Status seal_region(int fd);

// Another descriptor of the memory that cannot be mapped for writing.
Descriptor reopen_read_only(int fd);

// Maps memory that a peer made, once it is certain that it has `bytes` and keeps them.
Status map_sealed(int fd, std::size_t bytes, int protection, Mapping& out);

}  // namespace tent
