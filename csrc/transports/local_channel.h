// Stage: transport. The same-host link below shm and cma: two byte rings in one memfd, the Unix
// socket of the handshake beside them for passing descriptors and for noticing the peer's end.
//
// Descriptors, the same on both sides: Connection::fds = [channel memfd, connected Unix socket].
// The dialer calls open_local_channel() -> (ours, theirs) = ([memfd], [memfd]), sends `theirs` with
// SCM_RIGHTS in its handshake, closes its copy of `theirs`, and appends the Unix socket to `ours`;
// the accepting side appends its end of the socket to what it received. After connect() the socket
// belongs to the transport: nothing else may be read from it or written to it.
#pragma once

#include <vector>

#include "core/types.h"

namespace tent {

// Makes the memory of a channel. Both lists are the caller's to close.
Status open_local_channel(std::vector<int>& ours, std::vector<int>& theirs);

}  // namespace tent
