"""Stage: benchmarks. How fast do ranks on one GPU exchange its tensors, and does it beat gloo?

Run by gpu.sh, or by itself on a machine with a GPU: `python benchmarks/gpu_groups.py`. Two ranks on
one GPU (NCCL refuses that): 8 bytes there and back with tent.send and tent.recv, and collectives of
torch.distributed over tent and over gloo. What always holds: fresh data, every result compared;
the backends take turns in the same processes; medians of the slower rank's times.
"""

from __future__ import annotations

import faulthandler
import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_run import Rows, run

import torch_tent as tent
import torch_tent_autoload

KIB, MIB = 1 << 10, 1 << 20
RANKS, ROUNDS, ROUND_TRIPS, WAIT_S, BUDGET_S = 2, 7, 500, 20.0, 25.0
SIZES = {"64 KiB": 64 * KIB, "16 MiB": 16 * MIB, "64 MiB": 64 * MIB}
Times = dict[tuple[str, ...], list[float]]


def half_round_trips(rank: int, device: str) -> list[float]:
    """Half round trips of 8 bytes, by tent.send and tent.recv."""
    x = torch.full((8,), 7, dtype=torch.uint8, device=device)
    y = torch.zeros_like(x)
    found = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        if rank == 0:
            sent, received = tent.send(x, dst=1), tent.recv(y, src=1)
            received.wait(WAIT_S)
        else:
            tent.recv(y, src=0).wait(WAIT_S)
            sent = tent.send(y, dst=0)
        sent.wait(WAIT_S)
        found.append((time.perf_counter() - began) / 2)
    if not bool((y == 7).all()):
        raise AssertionError(f"8 bytes on {device}: wrong ones arrived")
    return found[ROUND_TRIPS // 10 :]


class Collectives:
    """The calls, each with tensors that were made once and a check of what it should give."""

    def __init__(self, rank: int, device: str, size: int, group: Any) -> None:
        count = size // 4
        self.rank, self.group = rank, group
        self.mine = torch.empty(count, device=device)
        self.result = torch.empty(count, device=device)

    def fill(self, turn: int) -> None:
        self.mine.fill_(self.rank + turn)
        self.result.fill_(-1)

    def all_reduce(self) -> None:
        dist.all_reduce(self.mine, group=self.group)

    def broadcast(self) -> None:
        dist.broadcast(self.mine, 0, group=self.group)

    def all_gather(self) -> None:
        part = self.mine[: self.mine.numel() // RANKS]
        dist.all_gather(list(self.result.chunk(RANKS)), part, group=self.group)

    def is_right(self, name: str, turn: int) -> bool:
        if name == "all_reduce":
            return bool((self.mine == sum(range(RANKS)) + RANKS * turn).all())
        if name == "broadcast":
            return bool((self.mine == turn).all())
        parts = self.result.chunk(RANKS)
        return all(bool((part == rank + turn).all()) for rank, part in enumerate(parts))


def collective_times(rank: int, groups: dict[str, Any], until: float) -> Times:
    """Seconds by (call, device, size, backend)."""
    found: Times = {}
    for name in ("all_reduce", "broadcast", "all_gather"):
        for label, size in SIZES.items():
            cases = [("cuda", backend) for backend in groups] + [("cpu", "tent")]
            late = torch.tensor(time.monotonic() > until)
            dist.broadcast(late, 0)  # The ranks must agree.
            if bool(late):
                continue
            made = [
                (device, backend, Collectives(rank, device, size, groups[backend]))
                for device, backend in cases
            ]
            for turn in range(ROUNDS + 1):
                for device, backend, calls in made:
                    calls.fill(turn)
                    torch.cuda.synchronize()
                    dist.barrier()
                    began = time.perf_counter()
                    getattr(calls, name)()
                    torch.cuda.synchronize()
                    took = time.perf_counter() - began
                    if not calls.is_right(name, turn):
                        raise AssertionError(f"{name} {label} over {backend}: a wrong result")
                    times = found.setdefault((name, device, label, backend), [])
                    times += [took] if turn else []  # The first makes links.
    return found


def member(rank: int, meeting: str, pipe: Any) -> None:
    """One rank: measures, and sends what it found."""
    torch.set_num_threads(1)
    torch_tent_autoload.register()
    until = time.monotonic() + BUDGET_S
    dist.init_process_group("tent", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    faulthandler.dump_traceback_later(BUDGET_S + 10)  # Where it hangs, if it does.
    found: Times = {
        ("half round trip", device): half_round_trips(rank, device) for device in ("cpu", "cuda")
    }
    groups = {"tent": dist.group.WORLD, "gloo": dist.new_group(backend="gloo")}
    found |= collective_times(rank, groups, until)
    dist.destroy_process_group()
    faulthandler.cancel_dump_traceback_later()
    pipe.send(found)


def of_both_ranks() -> list[Times]:
    """What each rank measured."""
    context = mp.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipe, theirs = context.Pipe()
        call = functools.partial(context.Process, target=member, daemon=True)
        ranks = [call(args=(rank, f"{folder}/meeting", theirs)) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        found = [pipe.recv() for _ in ranks if pipe.poll(BUDGET_S + WAIT_S)]
        for process in ranks:
            process.join(10)
    if len(found) < RANKS:
        raise TimeoutError("the ranks of the group did not end")
    return found


def measure(rows: Rows) -> None:
    first, second = of_both_ranks()
    for case, times in first.items():
        slower = [max(pair) for pair in zip(times, second[case], strict=True)]
        took = statistics.median(slower)
        rows.append(
            {
                "case": " ".join(case),
                "median_s": took,
                "least_s": min(slower),
                "most_s": max(slower),
                "rounds": len(slower),
            }
        )
        size = SIZES.get(case[2]) if len(case) > 2 else None
        speed = f"{size / took / 1e9:9.2f} GB/s" if size else ""
        print(f"{' '.join(case):40} {took * 1e6:12.1f} us {speed}", flush=True)


def conclude(rows: Rows) -> None:
    found = {row["case"]: row["median_s"] for row in rows}
    small = found.get("half round trip cuda")
    if small:
        verdict = "holds" if small <= 25e-6 else "MISSED"
        print(f"8 B, send and recv, half round trip: {small * 1e6:.1f} us, target 25  {verdict}")
    for case, took in found.items():
        other = found.get(case.removesuffix("tent") + "gloo")
        if case.endswith("tent") and other and " cuda " in case:
            print(f"{case.removesuffix(' tent')}: {other / took:.2f} x gloo")


if __name__ == "__main__":
    sys.exit(run(__doc__ or "", measure, conclude))
