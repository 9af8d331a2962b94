"""Stage: benchmarks, in a player. NIXL with its UCX backend, driven by the caller.

Without its progress thread, which costs a hop on a small machine; a player that is written to keeps
asking for notifications meanwhile, as NIXL expects of an agent without that thread.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np

from .base import Arm, BlockSteps, Idle, Probe, Steps, block_order
from .flow import Flow


class NixlArm(Arm):
    """One agent; rank 0 knows rank 1's memory and writes it or reads it."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        from nixl._api import nixl_agent, nixl_agent_config

        self.kind = nixl_agent
        self.settings = nixl_agent_config(False, False, 0, backends=["UCX"])
        self.agent = nixl_agent(f"rank{seat.rank}", self.settings)

    def version(self) -> str:
        """The installed one."""
        return f"nixl {importlib.metadata.version('nixl')}"

    def _meet(self, case: dict[str, Any]) -> tuple[Any, Any, int]:
        """(memory, its registration, rank 1's address): metadata is exchanged anew each time."""
        mine = self.buffer(case)
        kept = self.agent.register_memory([(mine.ctypes.data, mine.nbytes, 0, "")], "DRAM")
        met = self.seat.exchange((self.agent.get_agent_metadata(), mine.ctypes.data))
        self.agent.add_remote_agent(met[1 - self.seat.rank][0])
        return mine, kept, int(met[1][1])

    def _close(self, kept: Any) -> None:
        self.agent.deregister_memory(kept)

    def _move(self, transfer: Any, agent: Any = None) -> None:
        """Posts a prepared transfer and drives it to its end."""
        agent = agent or self.agent
        state = agent.transfer(transfer)
        while state == "PROC":
            state = agent.check_xfer_state(transfer)
        if state != "DONE":
            raise OSError(f"nixl: transfer ended as {state}")

    def _serve(self) -> None:
        self.agent.get_new_notifs()

    def _one_sided(self, case: dict[str, Any], operation: str) -> Probe:
        mine, kept, remote = self._meet(case)
        sends = (operation == "WRITE") == (self.seat.rank == 0)
        source, target = (mine, None) if sends else (None, mine)
        if self.seat.rank > 0:
            return Steps(_nothing, source, target, True, self._serve, lambda: self._close(kept))
        size = mine.nbytes
        local = self.agent.get_xfer_descs([(mine.ctypes.data, size, 0)], "DRAM")
        there = self.agent.get_xfer_descs([(remote, size, 0)], "DRAM")
        transfer = self.agent.initialize_xfer(operation, local, there, "rank1")

        def close() -> None:
            self.agent.release_xfer_handle(transfer)
            self._close(kept)

        return Steps(lambda: self._move(transfer), source, target, True, close=close)

    def offer_write(self, case: dict[str, Any]) -> Probe:
        """A transfer that was prepared once."""
        return self._one_sided(case, "WRITE")

    def offer_read(self, case: dict[str, Any]) -> Probe:
        """A transfer that was prepared once."""
        return self._one_sided(case, "READ")

    def offer_register(self, case: dict[str, Any]) -> Probe:
        """register_memory and deregister_memory."""
        if self.seat.rank > 0:
            return Idle()
        mine = self.buffer(case)
        spans = [(mine.ctypes.data, mine.nbytes, 0, "")]
        agent = self.agent
        return Steps(
            lambda: agent.deregister_memory(agent.register_memory(spans, "DRAM")),
            source=mine,
            passive=True,
        )

    def offer_meet(self, case: dict[str, Any]) -> Probe:
        """Two new agents, their metadata, and a write of 8 bytes."""
        kept = []

        def once() -> None:
            agent = self.kind(f"meet{len(kept)}-{self.seat.rank}", self.settings)
            mine = self.buffer(case)
            agent.register_memory([(mine.ctypes.data, 8, 0, "")], "DRAM")
            met = self.seat.exchange((agent.get_agent_metadata(), mine.ctypes.data))
            peer = agent.add_remote_agent(met[1 - self.seat.rank][0])
            kept.append((agent, mine))
            if self.seat.rank > 0:
                while not any(agent.get_new_notifs().values()):
                    pass
                return
            local = agent.get_xfer_descs([(mine.ctypes.data, 8, 0)], "DRAM")
            there = agent.get_xfer_descs([(met[1][1], 8, 0)], "DRAM")
            name = peer.decode() if isinstance(peer, bytes) else peer
            self._move(agent.initialize_xfer("WRITE", local, there, name, b"k"), agent)

        return Steps(once)

    def offer_flow(self, case: dict[str, Any]) -> Probe:
        """Writes one after the other."""
        return Flow(self, self.offer_write(case), case)

    def offer_write_blocks(self, case: dict[str, Any]) -> Probe:
        """From arrays of indices to the end; the pools' descriptors were prepared once."""
        return self._blocks(case, ready=False)

    def offer_write_ready_blocks(self, case: dict[str, Any]) -> Probe:
        """The same transfer again and again: its indices were resolved once."""
        return self._blocks(case, ready=True)

    def _blocks(self, case: dict[str, Any], ready: bool) -> Probe:
        mine, kept, remote = self._meet(case)
        if self.seat.rank > 0:
            return BlockSteps(
                case,
                _nothing,
                target=mine,
                passive=True,
                serve=self._serve,
                close=lambda: self._close(kept),
            )
        block = case["block"]
        source, place = (order.astype(np.int32) for order in block_order(case))
        here = self._pool("NIXL_INIT_AGENT", mine.ctypes.data, block, mine.nbytes // block)
        there = self._pool("rank1", remote, block, mine.nbytes // block)
        agent = self.agent
        fixed = agent.make_prepped_xfer("WRITE", here, source, there, place) if ready else None

        def once() -> None:
            transfer = fixed or agent.make_prepped_xfer("WRITE", here, source, there, place)
            self._move(transfer)
            if transfer is not fixed:
                agent.release_xfer_handle(transfer)

        def close() -> None:
            if fixed:
                agent.release_xfer_handle(fixed)
            agent.release_dlist_handle(here)
            agent.release_dlist_handle(there)
            self._close(kept)

        return BlockSteps(case, once, source=mine, passive=True, close=close)

    def _pool(self, agent: str, address: int, block: int, count: int) -> Any:
        rows = np.zeros((count, 3), np.uint64)
        rows[:, 0] = address + np.arange(count, dtype=np.uint64) * np.uint64(block)
        rows[:, 1] = block
        return self.agent.prep_xfer_dlist(agent, rows, "DRAM")


def _nothing() -> None:
    """The part of the side that is written to or read from."""


ARM = NixlArm
