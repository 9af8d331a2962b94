"""Stage: CLI. One pair of RDMA ports tried through pyverbs: connect, write, read back, compare.

Called by fabric.py on the main thread; the only file that imports pyverbs (extra `rdma`). The far
end of a pair is made by an `Answerer`, in this process or on another host; the packets cross
whatever lies between the ports. What always holds: each wait has an end, and the queue pairs of a
pair are closed before the next is tried.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any, Protocol

from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError, PyverbsRDMAError
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

from .fabric import Reach, same_kind
from .fabric_talk import End, Join, Joined, Talk, TalkError
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
    """A port, opened: its memory, where its completions come, and at most one queue pair."""

    def __init__(self, port: RdmaPort) -> None:
        self.port = port
        self._context = Context(name=port.device)
        attributes = self._context.query_port(port.number)
        self.mtu, self._lid = int(attributes.active_mtu), int(attributes.lid)
        self._domain = PD(self._context)
        self.completions = CQ(self._context, 16)
        self.memory = MR(self._domain, 2 * LARGE_BYTES, RIGHTS)
        self.queue_pair: Any = None

    def make_end(self, gid: Gid) -> End:
        """A queue pair in place of the one before, and what the other end must know of it."""
        self.drop_end()
        cap = QPCap(max_send_wr=8, max_recv_wr=1)
        ends = {"scq": self.completions, "rcq": self.completions}
        self.queue_pair = QP(self._domain, QPInitAttr(qp_type=e.IBV_QPT_RC, cap=cap, **ends))
        memory = (int(self.memory.buf), int(self.memory.rkey))
        number = int(self.queue_pair.qp_num)
        return End(number, self._lid, self.mtu, gid.raw.exploded, *memory)

    def connect(self, gid: Gid, far: End) -> None:
        """Takes the queue pair to where it may send."""
        attributes = QPAttr(qp_state=e.IBV_QPS_INIT, port_num=self.port.number)
        attributes.qp_access_flags = RIGHTS
        self.queue_pair.to_init(attributes)
        attributes = QPAttr(qp_state=e.IBV_QPS_RTR, port_num=self.port.number)
        attributes.qp_access_flags = RIGHTS
        attributes.ah_attr = self._way(gid, far)
        attributes.path_mtu = min(self.mtu, far.mtu)
        attributes.dest_qp_num, attributes.rq_psn = far.number, 0
        attributes.max_dest_rd_atomic, attributes.min_rnr_timer = 1, 12
        self.queue_pair.to_rtr(attributes)
        attributes.qp_state, attributes.sq_psn = e.IBV_QPS_RTS, 0
        attributes.timeout, attributes.retry_cnt = ACK_TIMEOUT, RETRIES
        attributes.rnr_retry, attributes.max_rd_atomic = RETRIES, 1
        self.queue_pair.to_rts(attributes)

    def _way(self, gid: Gid, far: End) -> Any:
        infiniband = self.port.link_layer == INFINIBAND
        if infiniband and gid.raw.exploded[:19] == far.gid[:19]:  # One subnet: by its own address.
            return AHAttr(port_num=self.port.number, is_global=0, dlid=far.lid)
        route = GlobalRoute(dgid=GID(far.gid), sgid_index=gid.index, hop_limit=64)
        lid = far.lid if infiniband else 0
        return AHAttr(port_num=self.port.number, is_global=1, gr=route, dlid=lid)

    def drop_end(self) -> None:
        """Closes the queue pair, if there is one."""
        if self.queue_pair is not None:
            self.queue_pair.close()
            self.queue_pair = None

    def close(self) -> None:
        self.drop_end()
        for part in (self.memory, self.completions, self._domain, self._context):
            part.close()


class Answerer(Protocol):
    """Who makes the far ends."""

    def answer(self, request: Join) -> Joined: ...
    def close(self) -> None: ...


class Here:
    """Makes far ends at ports of this host. Its sides are its own: a port may meet itself."""

    def __init__(self, ports: list[RdmaPort]) -> None:
        self._ports = {port.name: port for port in ports}
        self._sides: dict[str, Side] = {}

    def answer(self, request: Join) -> Joined:
        """Never raises for what a device does."""
        port = self._ports.get(request.port)
        gids = [] if port is None else [g for g in port.gids if g.index == request.gid_index]
        if port is None or not gids:
            return Joined(None, f"there is no port {request.port} with GID {request.gid_index}")
        try:
            if port.name not in self._sides:
                self._sides[port.name] = Side(port)
            end = self._sides[port.name].make_end(gids[0])
            self._sides[port.name].connect(gids[0], request.end)
        except (PyverbsError, PyverbsRDMAError) as error:
            trouble, advice = _explained(error)
            return Joined(None, f"the far end: {trouble}", advice)
        return Joined(end)

    def close(self) -> None:
        for side in self._sides.values():
            side.close()
        self._sides = {}


class There:
    """Has another host make the far ends."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk

    def answer(self, request: Join) -> Joined:
        """Raises TalkError when the other host has gone."""
        self._talk.send(request)
        return self._talk.receive(Joined)

    def close(self) -> None:
        self._talk.close()


def serve(talk: Talk, ports: list[RdmaPort]) -> int:
    """Makes ends for another host until it hangs up; how many."""
    here, made = Here(ports), 0
    try:
        while True:
            try:
                request = talk.receive(Join)
            except TalkError:
                return made
            talk.send(here.answer(request))
            made += 1
    finally:
        here.close()


class VerbsProber:
    """Tries pairs of ports; a port is opened once. See fabric.Prober."""

    def __init__(self, far: Answerer) -> None:
        self._far = far
        self._sides: dict[str, Side] = {}

    def reach(self, source: RdmaPort, target: RdmaPort) -> Reach:
        """One pair, one direction. Never raises for what the fabric or a device does."""
        gids = same_kind(source, target)
        if gids is None:
            return Reach(source.name, target.name, "no GIDs of one kind")
        try:
            if source.name not in self._sides:
                self._sides[source.name] = Side(source)
            near = self._sides[source.name]
            joined = self._far.answer(Join(target.name, gids[1].index, near.make_end(gids[0])))
            if joined.end is None:
                return Reach(source.name, target.name, joined.trouble, joined.advice)
            near.connect(gids[0], joined.end)
            return _tried(near, joined.end, target.name)
        except FailedError as error:
            return Reach(source.name, target.name, error.trouble, error.advice)
        except (PyverbsError, PyverbsRDMAError) as error:
            return Reach(source.name, target.name, *_explained(error))

    def close(self) -> None:
        """Closes every port that was opened, and the far ends."""
        for side in self._sides.values():
            side.close()
        self._sides = {}
        self._far.close()


def _tried(near: Side, far: End, target: str) -> Reach:
    """Writes a little, writes much, reads that back into another place and compares."""
    mtu_bytes = next(size for size, code in MTU_BYTES.items() if code == min(near.mtu, far.mtu))
    _write(near, far, SMALL_BYTES)
    seconds = min(_write(near, far, SMALL_BYTES) for _ in range(5))
    try:
        _write(near, far, LARGE_BYTES)
    except FailedError as error:
        trouble = f"small packets arrive, those of {mtu_bytes} bytes do not: {error.trouble}"
        raise FailedError(trouble, BIG_PACKETS) from None
    _post(near, far, e.IBV_WR_RDMA_READ, LARGE_BYTES, LARGE_BYTES)
    sent, back = (near.memory.read(LARGE_BYTES, at) for at in (0, LARGE_BYTES))
    if sent != back:
        trouble = "the bytes read back are not those written"
        return Reach(near.port.name, target, trouble, corrupt=True)
    return Reach(near.port.name, target, write_s=seconds, path_mtu_bytes=mtu_bytes)


def _write(near: Side, far: End, size: int) -> float:
    near.memory.write(os.urandom(size), size)
    return _post(near, far, e.IBV_WR_RDMA_WRITE, 0, size)


def _post(near: Side, far: End, opcode: int, offset: int, size: int) -> float:
    """One operation between `offset` here and the beginning there; how long it took."""
    place = SGE(near.memory.buf + offset, size, near.memory.lkey)
    request = SendWR(opcode=opcode, num_sge=1, sg=[place], send_flags=e.IBV_SEND_SIGNALED)
    request.set_wr_rdma(far.key, far.address)
    began = time.monotonic()
    near.queue_pair.post_send(request)
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
