"""Stage: benchmarks, in a player. Open MPI through mpi4py; mpirun starts the players."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Arm, BlockSteps, Probe, Steps, Wakes, block_order
from .distributed import ping_pong


class MpiArm(Arm):
    """Two ranks of MPI_COMM_WORLD."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        from mpi4py import MPI

        self.mpi = MPI
        self.comm = MPI.COMM_WORLD

    def version(self) -> str:
        """The library's."""
        return self.mpi.Get_library_version().split(",")[0]

    def offer_pingpong(self, case: dict[str, Any]) -> Probe:
        """Send and Recv."""
        mine, peer = self.buffer(case), 1 - self.seat.rank
        once = ping_pong(
            self.seat.rank,
            lambda: self.comm.Send(mine, peer),
            lambda: self.comm.Recv(mine, peer),
        )
        return Steps(once, mine, mine)

    def offer_stream(self, case: dict[str, Any]) -> Probe:
        """Send on one side, Recv on the other."""
        mine = self.buffer(case)
        if self.seat.rank == 0:
            return Steps(lambda: self.comm.Send(mine, 1), source=mine)
        return Steps(lambda: self.comm.Recv(mine, 0), target=mine)

    def offer_wake(self, case: dict[str, Any]) -> Probe:
        """A message of 8 bytes; Open MPI never sleeps, it polls."""
        stamp = np.zeros(1, np.int64)
        return Wakes(
            self.seat.rank,
            lambda: self.comm.Send(stamp, 1),
            lambda: self.comm.Recv(stamp, 0),
            stamp,
        )

    def offer_write_blocks(self, case: dict[str, Any]) -> Probe:
        """One message of an indexed type on each side, made once."""
        mine = self.buffer(case)
        order = block_order(case)[self.seat.rank]
        places = (order * case["block"]).tolist()
        kind = self.mpi.BYTE.Create_hindexed_block(case["block"], places).Commit()
        if self.seat.rank == 0:
            return BlockSteps(
                case, lambda: self.comm.Send([mine, 1, kind], 1), source=mine, close=kind.Free
            )
        return BlockSteps(
            case, lambda: self.comm.Recv([mine, 1, kind], 0), target=mine, close=kind.Free
        )


ARM = MpiArm
