"""The data plane as Python sees it: addresses in, completions out; knows nothing of tensors.

An engine is one object with four roles, described one by one: `_Transfers`, `_Memory`, `_Peers`
and `_Eyes` are names of this file only.

Every call releases the GIL where it may wait. Times are seconds. A `Layout` is made of parts
`(base, plane, piece_bytes, dims, blocks)`, `dims` a sequence of `(count, stride_bytes)`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

class Layout:
    """Where the bytes of a transfer lie: addresses, or offsets in a remote segment's planes."""

    def __init__(
        self,
        parts: Sequence[
            tuple[int, int, int, Sequence[tuple[int, int]], np.ndarray[Any, Any] | None]
        ],
        device: int = -1,
        stream: int = 0,
    ) -> None:
        """device: the GPU whose memory it is, -1 for the host's; stream: where work on it waits."""
    @staticmethod
    def contiguous(address: int, bytes: int, device: int = -1, stream: int = 0) -> Layout:
        """One piece in plane 0, made without a list: the way of small messages."""
    @property
    def bytes(self) -> int: ...
    @property
    def device(self) -> int: ...

class Operation:
    """One transfer inside the engine. Its end is reported once; all methods may be called by any
    thread."""

    @property
    def id(self) -> int: ...
    def done(self) -> bool: ...
    def wait(self, timeout: float | None) -> bool:
        """Drives the engine until the transfer ended; False when `timeout` passed first."""
    @property
    def failed(self) -> bool:
        """Whether it ended with an error: the quick part of `status`."""
    def status(self) -> tuple[int, str, str]:
        """`(code, text, rail)`; code 0 is success, see Code in csrc/core/types.h."""
    def report(self) -> dict[str, Any]:
        """bytes, seconds, rails {name: (bytes, slices)}, retries, fences, path, peer."""
    def cancel(self) -> None: ...

# peer, segment, key, epoch, where in the segment, shape, the number of the dtype
Place = tuple[int, int, int, int, Layout, tuple[int, ...], int]

def learn_dtype(example: Any, code: int, item_bytes: int) -> bool:
    """Lets `Verbs` read tensors of the example's type and dtype, a real one; False where the type
    does not offer DLPack's C functions."""

class Verbs:
    """The verbs without options, for contiguous CPU tensors. Each returns None for anything else,
    and has then done nothing. The operation is `watch`ed from the start, not `soon`."""

    def send(self, x: Any, peer: int, context: int, tag: Any) -> Operation | None: ...
    def recv(self, y: Any, peer: int | None, context: int, tag: Any) -> Operation | None: ...
    def write(self, x: Any, place: Place) -> Operation | None: ...
    def read(self, out: Any, place: Place) -> Operation | None: ...

class _Transfers:
    """options: priority 0|1, timeout s, deadline s, rails mask (see RailKind), each may be left
    out."""

    def send(
        self, peer: int, context: int, tag: int, meta: int, local: Layout, options: dict[str, Any]
    ) -> Operation: ...
    def recv(
        self,
        peer: int | None,
        context: int,
        tag: int,
        meta: int,
        local: Layout,
        options: dict[str, Any],
    ) -> Operation: ...
    def write(
        self,
        peer: int,
        local: Layout,
        segment: int,
        key: int,
        epoch: int,
        remote: Layout,
        note: bytes | None,
        options: dict[str, Any],
    ) -> Operation: ...
    def read(
        self,
        peer: int,
        local: Layout,
        segment: int,
        key: int,
        epoch: int,
        remote: Layout,
        options: dict[str, Any],
    ) -> Operation: ...
    def verbs(self, used: Callable[[Any], None] | None = None, used_bytes_min: int = 0) -> Verbs:
        """used: called with each tensor of so many bytes or more, just before it is used."""
    def on_done(self, callback: Callable[[list[int]], None]) -> None:
        """`callback` gets the ids of ended `watch`ed transfers, on the notifier thread."""
    def watch(self, operation: Operation, soon: bool) -> None:
        """Asks for `on_done` for this transfer, once; at once when it has already ended.

        `soon` wakes the notifier when the transfer ends. Without it the end is told within some
        milliseconds, many at a time, and not at all when `Operation.wait` has returned True before:
        this costs the caller of a small message nothing.
        """

class _Memory:
    def register(
        self,
        planes: Sequence[tuple[int, int, int]],
        readable: bool,
        writable: bool,
        blocks: int,
        device: int = -1,
    ) -> tuple[int, int]:
        """planes (address, bytes, bytes from one block to the next or 0) -> (segment id, key).

        device: the GPU that holds all planes, -1 for the host.
        """
    def close_segment(self, segment: int) -> None:
        """Returns when nothing can land in it, and nothing is read from it, any more."""
    def revoke(self, segment: int, blocks: np.ndarray[Any, Any]) -> int:
        """The new epoch; blocks are int64. Returns as `close_segment` does."""
    def epoch(self, segment: int) -> int: ...
    def notifications(self, segment: int) -> list[tuple[int, bytes]]:
        """Takes the waiting (peer, payload) pairs."""
    def wait_notification(self, segment: int, timeout: float | None) -> bool: ...
    def allocate(self, bytes: int) -> SharedMemory:
        """Shareable memory (memfd, huge pages advised); unmapped when the object goes."""

class _Peers:
    """Peers and their links, for the control plane."""

    def add_peer(self, name: str) -> int: ...
    def lose_peer(self, peer: int, reason: str) -> None: ...
    def alive(self, peer: int) -> bool: ...
    def closed(self, peer: int) -> bool: ...
    def add_link(
        self,
        peer: int,
        link: int,
        kind: str,
        rail: str,
        fds: Sequence[int],
        dialed: bool,
        pid: int,
        rate_hint: float,
    ) -> None:
        """kind: a transport's name, as in the settings. Takes the descriptors over, also when it
        raises.

        rate_hint: bytes per nanosecond, 0 where it is unknown.
        """
    def close_link(self, link: int, reason: str) -> None: ...
    def no_rails(self, peer: int, rails: int, reason: str) -> None:
        """No rail of this mask can be made to the peer: transfers that need one fail."""
    def next_events(self, timeout: float | None) -> list[tuple[str, int, int, str, str]]:
        """What the control plane must know: ("dial", peer, rails mask, "", ""),
        ("down", peer, link, rail, reason), ("rested", peer, link, rail, reason) instead of it for a
        link that was closed because it carried nothing, ("lost", peer, 0, "", reason). Waits up to
        `timeout`; empty when it passed; raises RuntimeError once the engine is closed."""
    def rdma_expected(self) -> None:
        """RDMA links may come: memory in use is remembered from now on, for registering it."""

    def rdma_open(self, link: int, device: str, port: int, gid_index: int) -> bytes:
        """Makes our end of an RDMA link; returns what the peer needs to join it. RuntimeError: why
        that is not possible."""

    def rdma_join(self, link: int, endpoint: bytes, dialed: bool) -> None:
        """Joins our end with the peer's; the dialer's first message goes out."""

    def rdma_greeted(self, link: int) -> bool:
        """Whether the peer's message has come, the link can be added. RuntimeError: never."""

    def rdma_drop(self, link: int) -> None:
        """Takes back `rdma_open`."""

    def probe_word(self) -> tuple[int, int]:
        """(address, value) of a random 8-byte word, for a peer's CMA probe."""

class _Eyes:
    def stats(self) -> dict[str, Any]:
        """Counters since the engine began, as plain values:

        transfers: done, failed, outstanding, retries, fences, suspects, twins
        rails: a list, one entry per rail and peer: peer, rail, kind, up, bytes_sent,
            bytes_received, slices_sent, slices_received, retries, fences, links_made, links_lost,
            links_rested (closed because they carried nothing),
            rate_bytes_per_s, base_latency_s, in_flight_bytes, window_bytes (the last four are 0
            while it is down)
        latency: {"send" | "recv" | "write" | "read": {count, sum_s, max_s, p50_s, p90_s, p99_s,
            p999_s, buckets: [(upper_s, count), ...]}}, of successful transfers, resolved to 1 us;
            buckets that are empty are left out
        threads: count, progress_sleeps, watches, progress_rests
        gpus: a list, one entry per GPU in use: device, copies (calls of the driver), gathers
            (launches that each moved many pieces), gathers_not (why there are none; "" where
            there may be), rdma: {RDMA device: why it does not move this GPU's memory by itself, ""
            where it does}
        """
    def trace(self, on: bool) -> None: ...
    def take_trace(self) -> list[tuple[int, int, str, int, int, int, int, bool]]:
        """(flow, peer, rail, offset, bytes, posted_ns, ended_ns, acked), oldest first."""
    def take_copy_trace(self) -> list[tuple[int, str, int, int, int]]:
        """(GPU, "out" | "in" | "across", bytes, begun_ns, ended_ns), oldest first."""

class Engine(_Transfers, _Memory, _Peers, _Eyes):
    def __init__(self, settings: dict[str, float | int | bool]) -> None:
        """Starts the progress and notifier threads."""

    @property
    def c_api(self) -> object:
        """PyCapsule "torch_tent.engine" with the function table of csrc/engine/c_api.h."""
    def close(self) -> None:
        """Says bye, ends every transfer, joins the threads. Idempotent."""

class SharedMemory:
    """Shareable memory; offers the writable buffer protocol."""

    @property
    def address(self) -> int: ...
    @property
    def bytes(self) -> int: ...

def open_local_channel() -> tuple[list[int], list[int]]:
    """Makes the two rings of a same-host link: (our descriptors, the peer's descriptors).

    The Unix socket of the handshake is appended to both lists by the caller, last.
    """

def probe_cma(pid: int, address: int, value: int) -> str:
    """Tries to read the peer's probe word; "" when CMA works, else why not."""

def measure_registration(library: str, device: str, bytes: int) -> float:
    """Seconds in which an RDMA device registers so much memory. RuntimeError: why it cannot be."""

def load_cuda(library: str) -> str:
    """Opens the CUDA driver, once per process; "" when that worked, else why not."""

def cuda_device_count() -> int: ...
def cuda_uuid(device: int) -> str:
    """32 hex digits."""

def cuda_can_read(device: int, other: int) -> bool:
    """Whether copies that run on a device can read another one's memory. Makes no context."""

def cuda_pci(device: int) -> str:
    """Its PCI address, as in 0000:17:00.0; "" where the driver does not say."""

def try_gpudirect(library: str, device: str, port: int, gid_index: int, gpu: int) -> str:
    """ "" when the RDMA device reads and writes the GPU's memory, tried with 64 KiB of it; else why
    not. `library`: the libibverbs to open, "" for the system's. Uses the GPU's context."""

def cuda_holds(device: int, address: int, bytes: int) -> bool:
    """Whether all of this memory is the device's. After load_cuda()."""

def cuda_device_of(address: int) -> int:
    """The GPU that has memory at this address; -1 where the driver knows of none."""

def now_ns() -> int: ...
