"""Stage: benchmarks, in a player. Mooncake's transfer engine, over TCP, peer to peer."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from .base import Arm, BlockSteps, Idle, Missing, Probe, Steps, block_order
from .flow import Flow

DISTRIBUTION = "mooncake-transfer-engine-non-cuda"


class MooncakeArm(Arm):
    """One engine; rank 0 writes into rank 1's memory or reads it."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        from mooncake.engine import TransferEngine

        self.host = seat.options.get("hosts", ["127.0.0.1", "127.0.0.1"])[seat.rank]
        self.engine = TransferEngine()
        refused = self.engine.initialize(self.host, "P2PHANDSHAKE", "tcp", "")
        if refused:
            raise Missing(f"mooncake: initialize returned {refused}")

    def version(self) -> str:
        """The installed one."""
        return f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"

    def _meet(self, case: dict[str, Any]) -> tuple[Any, str, int]:
        mine = self.buffer(case)
        _good(self.engine.register_memory(mine.ctypes.data, mine.nbytes))
        met = self.seat.exchange((f"{self.host}:{self.engine.get_rpc_port()}", mine.ctypes.data))
        return mine, met[1][0], met[1][1]

    def _close(self, mine: Any) -> None:
        self.engine.unregister_memory(mine.ctypes.data)

    def _one_sided(self, case: dict[str, Any], write: bool) -> Probe:
        mine, peer, remote = self._meet(case)
        sends = write == (self.seat.rank == 0)
        source, target = (mine, None) if sends else (None, mine)

        def close() -> None:
            self._close(mine)

        if self.seat.rank > 0:
            return Idle(source, target, close)
        move = self.engine.transfer_sync_write if write else self.engine.transfer_sync_read
        here, size = mine.ctypes.data, mine.nbytes
        return Steps(
            lambda: _good(move(peer, here, remote, size)), source, target, True, close=close
        )

    def offer_write(self, case: dict[str, Any]) -> Probe:
        """transfer_sync_write."""
        return self._one_sided(case, write=True)

    def offer_read(self, case: dict[str, Any]) -> Probe:
        """transfer_sync_read."""
        return self._one_sided(case, write=False)

    def offer_register(self, case: dict[str, Any]) -> Probe:
        """register_memory and unregister_memory."""
        if self.seat.rank > 0:
            return Idle()
        mine = self.buffer(case)

        def once() -> None:
            _good(self.engine.register_memory(mine.ctypes.data, mine.nbytes))
            _good(self.engine.unregister_memory(mine.ctypes.data))

        return Steps(once, source=mine, passive=True)

    def offer_flow(self, case: dict[str, Any]) -> Probe:
        """Writes one after the other."""
        return Flow(self, self.offer_write(case), case)

    def offer_write_blocks(self, case: dict[str, Any]) -> Probe:
        """batch_transfer_sync_write, from arrays of indices."""
        mine, peer, remote = self._meet(case)
        if self.seat.rank > 0:
            return BlockSteps(
                case, lambda: None, target=mine, passive=True, close=lambda: self._close(mine)
            )
        source, place = block_order(case)
        block, here = case["block"], mine.ctypes.data
        move = self.engine.batch_transfer_sync_write

        def once() -> None:
            starts = (source * block + here).tolist()
            ends = (place * block + remote).tolist()
            _good(move(peer, starts, ends, [block] * len(starts)))

        return BlockSteps(case, once, source=mine, passive=True, close=lambda: self._close(mine))


def _good(status: int) -> None:
    if status:
        raise OSError(f"mooncake: status {status}")


ARM = MooncakeArm
