"""Stage: CLI. One pair of RDMA ports tried through pyverbs: connect, write, read, compare.

Called by fabric.py on the main thread; the only file that imports pyverbs (extra `rdma`). Both ends
are of this process, the packets are not: they cross whatever lies between the ports. What always
holds: each wait has an end, and a queue pair is closed before the next pair is tried.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from .fabric import Reach, same_kind
from .rdma_ports import INFINIBAND, Gid, RdmaPort

try:
    import pyverbs.libibverbs_enums as e  # newer releases
except ImportError:
    import pyverbs.enums as e

SMALL_BYTES, LARGE_BYTES = 64, 64 << 10
WAIT_S = 2.0
ACK_TIMEOUT, RETRIES = 12, 3  # 4.096 µs × 2^12 = 17 ms, four tries
RIGHTS = e.IBV_ACCESS_LOCAL_WRITE | e.IBV_ACCESS_REMOTE_WRITE | e.IBV_ACCESS_REMOTE_READ
MTU_BYTES = {256 << step: e.IBV_MTU_256 + step for step in range(5)}
STATUS = {
    getattr(e, name): name.removeprefix("IBV_WC_").lower().replace("_", " ")
    for name in dir(e)
    if name.startswith("IBV_WC_") and name.endswith("_ERR")
}
SILENT = {e.IBV_WC_RETRY_EXC_ERR, e.IBV_WC_RNR_RETRY_EXC_ERR, e.IBV_WC_RESP_TIMEOUT_ERR}
NO_ANSWER = (
    "where they should meet: look at cable, switch, VLAN, and that routes and firewalls let UDP "
    "port 4791 through"
)
BIG_PACKETS = "set the MTU of every switch and interface on the way to 4200 or more"


class FailedError(Exception):
    """An operation did not succeed: what happened, and what to do."""

    def __init__(self, trouble: str, advice: str = "") -> None:
        super().__init__(trouble)
        self.trouble, self.advice = trouble, advice


class Side:
    """A port, opened: its memory and where its completions come."""

    def __init__(self, port: RdmaPort) -> None:
        self.port = port
        self.context = Context(name=port.device)
        attributes = self.context.query_port(port.number)
        self.mtu, self.lid = int(attributes.active_mtu), int(attributes.lid)
        self.domain = PD(self.context)
        self.completions = CQ(self.context, 16)
        self.memory = MR(self.domain, 2 * LARGE_BYTES, RIGHTS)

    def queue_pair(self) -> Any:
        cap = QPCap(max_send_wr=8, max_recv_wr=1)
        ends = {"scq": self.completions, "rcq": self.completions}
        return QP(self.domain, QPInitAttr(qp_type=e.IBV_QPT_RC, cap=cap, **ends))

    def connect(self, queue_pair: Any, gid: Gid, far: Side, far_gid: Gid, far_number: int) -> None:
        """Takes a queue pair to where it may send."""
        attributes = QPAttr(qp_state=e.IBV_QPS_INIT, port_num=self.port.number)
        attributes.qp_access_flags = RIGHTS
        queue_pair.to_init(attributes)
        attributes = QPAttr(qp_state=e.IBV_QPS_RTR, port_num=self.port.number)
        attributes.qp_access_flags = RIGHTS
        attributes.ah_attr = self._way(gid, far, far_gid)
        attributes.path_mtu = min(self.mtu, far.mtu)
        attributes.dest_qp_num, attributes.rq_psn = far_number, 0
        attributes.max_dest_rd_atomic, attributes.min_rnr_timer = 1, 12
        queue_pair.to_rtr(attributes)
        attributes.qp_state, attributes.sq_psn = e.IBV_QPS_RTS, 0
        attributes.timeout, attributes.retry_cnt = ACK_TIMEOUT, RETRIES
        attributes.rnr_retry, attributes.max_rd_atomic = RETRIES, 1
        queue_pair.to_rts(attributes)

    def _way(self, gid: Gid, far: Side, far_gid: Gid) -> Any:
        if self.port.link_layer == INFINIBAND and int(gid.raw) >> 64 == int(far_gid.raw) >> 64:
            return AHAttr(port_num=self.port.number, is_global=0, dlid=far.lid)
        route = GlobalRoute(dgid=GID(far_gid.raw.exploded), sgid_index=gid.index, hop_limit=64)
        lid = far.lid if self.port.link_layer == INFINIBAND else 0
        return AHAttr(port_num=self.port.number, is_global=1, gr=route, dlid=lid)

    def close(self) -> None:
        for part in (self.memory, self.completions, self.domain, self.context):
            part.close()


class VerbsProber:
    """Tries pairs of ports; a port is opened once. See fabric.Prober."""

    def __init__(self) -> None:
        self._sides: dict[str, Side] = {}

    def reach(self, source: RdmaPort, target: RdmaPort) -> Reach:
        """One pair, one direction. Never raises for what the fabric or a device does."""
        gids = same_kind(source, target)
        if gids is None:
            return Reach(source.name, target.name, "no GIDs of one kind")
        try:
            near, far = self._side(source), self._side(target)
            return _tried(near, far, gids)
        except FailedError as error:
            return Reach(source.name, target.name, error.trouble, error.advice)
        except (PyverbsError, PyverbsRDMAError) as error:
            return Reach(source.name, target.name, *_explained(error))

    def _side(self, port: RdmaPort) -> Side:
        if port.name not in self._sides:
            self._sides[port.name] = Side(port)
        return self._sides[port.name]

    def close(self) -> None:
        """Closes every port that was opened."""
        for side in self._sides.values():
            side.close()
        self._sides = {}


def _tried(near: Side, far: Side, gids: tuple[Gid, Gid]) -> Reach:
    """Writes a little, writes much, reads it back."""
    own, other = near.queue_pair(), far.queue_pair()
    names = (near.port.name, far.port.name)
    mtu_bytes = next(size for size, code in MTU_BYTES.items() if code == min(near.mtu, far.mtu))
    try:
        near.connect(own, gids[0], far, gids[1], other.qp_num)
        far.connect(other, gids[1], near, gids[0], own.qp_num)
        _write(near, far, own, SMALL_BYTES)
        seconds = min(_write(near, far, own, SMALL_BYTES) for _ in range(5))
        try:
            _write(near, far, own, LARGE_BYTES)
        except FailedError as error:
            trouble = f"small packets arrive, those of {mtu_bytes} bytes do not: {error.trouble}"
            raise FailedError(trouble, BIG_PACKETS) from None
        _read(near, far, own)
        wrote = far.memory.read(LARGE_BYTES, 0) == near.memory.read(LARGE_BYTES, 0)
        read = near.memory.read(LARGE_BYTES, LARGE_BYTES) == near.memory.read(LARGE_BYTES, 0)
        if not (wrote and read):
            broken = "written" if not wrote else "read"
            return Reach(*names, f"the bytes {broken} are not those sent", corrupt=True)
        return Reach(*names, write_s=seconds, path_mtu_bytes=mtu_bytes)
    finally:
        own.close()
        other.close()


def _write(near: Side, far: Side, queue_pair: Any, size: int) -> float:
    near.memory.write(os.urandom(size), size)
    return _post(near, far, queue_pair, e.IBV_WR_RDMA_WRITE, 0, size)


def _read(near: Side, far: Side, queue_pair: Any) -> float:
    return _post(near, far, queue_pair, e.IBV_WR_RDMA_READ, LARGE_BYTES, LARGE_BYTES)


def _post(near: Side, far: Side, queue_pair: Any, opcode: int, offset: int, size: int) -> float:
    """One operation between `offset` here and the beginning there; how long it took."""
    place = SGE(near.memory.buf + offset, size, near.memory.lkey)
    request = SendWR(opcode=opcode, num_sge=1, sg=[place], send_flags=e.IBV_SEND_SIGNALED)
    request.set_wr_rdma(far.memory.rkey, far.memory.buf)
    began = time.monotonic()
    queue_pair.post_send(request)
    while time.monotonic() - began < WAIT_S:
        count, completions = near.completions.poll(1)
        if count:
            if completions[0].status == e.IBV_WC_SUCCESS:
                return time.monotonic() - began
            status = completions[0].status
            words = STATUS.get(status, f"status {status}")
            silent = status in SILENT
            raise FailedError(f"no answer, {words}" if silent else words, NO_ANSWER * silent)
    raise FailedError(f"no completion within {WAIT_S:g} s", NO_ANSWER)


def _explained(error: Exception) -> tuple[str, str]:
    """What a refused call says, and what to do."""
    code = getattr(error, "error_code", 0)
    words = os.strerror(code) if code else str(error).strip()
    if code in (errno.EACCES, errno.EPERM):
        return words, "give this user access to /dev/infiniband/uverbs*"
    if code == errno.ENOMEM:
        return words, "raise the limit on pinned memory: ulimit -l unlimited"
    if code in (errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL):
        return f"its address is not resolved: {words}", NO_ANSWER
    return words, ""
