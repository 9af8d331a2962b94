"""Stage: benchmarks. How fast do CUDA tensors get from one process to another?

Run by gpu.sh, or by itself on a machine with a GPU: `python benchmarks/gpu.py [--json FILE]`. Two
processes on one GPU. What always holds: fresh data, every byte compared after it was timed, and
ceilings (the GPU's copies from and to page-locked memory, the same rails with host memory) that are
measured in the same run; medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_run import run

from torch_tent.engines import Engine
from torch_tent.settings import Settings

MIB = 1 << 20
SIZES = {"1 MiB": MIB, "64 MiB": 64 * MIB, "512 MiB": 512 * MIB}
IPC_SIZES = {"1 MiB": MIB, "64 MiB": 64 * MIB, "1 GiB": 1024 * MIB}  # From GPU to GPU.
PATHS = {"tcp": ("tcp",), "host": ("shm",), "ipc": ("shm", "cuda_ipc")}
ENDS = [("cpu", "cpu"), ("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")]
ROUNDS, ROUND_TRIPS, WAIT_S = 7, 300, 60.0
BUDGET_S = 90.0  # What does not fit into it any more is left out, and said.


def engine_of(path: str) -> Engine:
    return Engine(Settings(transports=PATHS[path]))


def serve(pipe: Any, path: str) -> None:
    """The other process: registers what it is told to, and compares."""
    engine = engine_of(path)
    kept: Any = None
    while True:
        word, *more = pipe.recv()
        if word == "register":
            device, size = more
            kept = engine.register(
                torch.zeros(size, dtype=torch.uint8, device=device), access="read-write"
            )
            pipe.send(kept.ticket())
        elif word == "compare":
            found = kept._kept[1].cpu()
            pipe.send(bool((found == more[0]).all()))
        elif word == "trace":
            pipe.send(engine.native.take_copy_trace())
            engine.native.trace(more[0])
        elif word == "end":
            engine.close()
            pipe.send(None)
            return


class Peer:
    """The other process, and our engine for the path to it."""

    def __init__(self, path: str) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, path), daemon=True)
        self.process.start()
        self.engine = engine_of(path)

    def ask(self, *words: Any) -> Any:
        self.pipe.send(words)
        if not self.pipe.poll(WAIT_S):
            raise TimeoutError(f"the other process did not answer {words[0]}")
        return self.pipe.recv()

    def remote(self, device: str, size: int) -> Any:
        return self.engine.open(self.ask("register", device, size))

    def close(self) -> None:
        self.ask("end")
        self.engine.close()
        self.process.join(10)


def write_seconds(peer: Peer, ends: tuple[str, str], size: int, require: Any = None) -> list[float]:
    """Seconds of one write each, from a tensor that was filled anew."""
    x = torch.empty(size, dtype=torch.uint8, device=ends[0])
    remote = peer.remote(ends[1], size)
    found = []
    for turn in range(ROUNDS + 1):
        x.fill_(turn + 1)
        torch.cuda.synchronize()
        began = time.perf_counter()
        peer.engine.write(x, remote, require=require).wait(WAIT_S)
        found.append(time.perf_counter() - began)
        if not peer.ask("compare", turn + 1):
            raise AssertionError(f"{ends} {size}: wrong bytes arrived")
    return found[1:]


def copy_seconds(size: int, into: bool) -> list[float]:
    """The GPU's own copies from or to page-locked memory."""
    host = torch.zeros(size, dtype=torch.uint8).pin_memory()
    gpu = torch.zeros(size, dtype=torch.uint8, device="cuda")
    found = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        gpu.copy_(host, non_blocking=True) if into else host.copy_(gpu, non_blocking=True)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def across_seconds(size: int) -> list[float]:
    """The GPU's own copies within its memory."""
    x = torch.zeros(size, dtype=torch.uint8, device="cuda")
    y = torch.empty_like(x)
    found = []
    for turn in range(ROUNDS + 1):
        x.fill_(turn)
        torch.cuda.synchronize()
        began = time.perf_counter()
        y.copy_(x, non_blocking=True)
        torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found[1:]


def small_seconds(peer: Peer, device: str) -> list[float]:
    """8 bytes written, until the writer knows that they are there: more than half a round trip."""
    x, remote = torch.ones(8, dtype=torch.uint8, device=device), peer.remote(device, 8)
    found = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        peer.engine.write(x, remote).wait(WAIT_S)
        found.append(time.perf_counter() - began)
    return found[ROUND_TRIPS // 10 :]


def call_seconds(peer: Peer, device: str) -> list[float]:
    """What the call alone costs the caller, behind a kernel that is still running."""
    x, remote = torch.ones(MIB, dtype=torch.uint8, device=device), peer.remote("cpu", MIB)
    found = []
    for _ in range(ROUND_TRIPS // 3):
        if device == "cuda":
            torch.cuda._sleep(1_000_000)
        began = time.perf_counter()
        transfer = peer.engine.write(x, remote)
        found.append(time.perf_counter() - began)
        transfer.wait(WAIT_S)
    return found


def measure(rows: list[dict[str, Any]]) -> None:
    began = time.monotonic()

    def add(case: str, size: int, seconds: Callable[[], list[float]]) -> None:
        if time.monotonic() - began > BUDGET_S:
            print(f"{case:44} left out: no time", flush=True)
            return
        times = seconds()
        row = {
            "case": case,
            "bytes": size,
            "median_s": statistics.median(times),
            "least_s": min(times),
            "most_s": max(times),
            "rounds": len(times),
        }
        rows.append(row)
        speed = f"{size / row['median_s'] / 1e9:9.2f} GB/s" if size >= MIB else ""
        print(f"{case:44} {row['median_s'] * 1e6:12.1f} us {speed}", flush=True)

    for label, size in SIZES.items():
        add(f"copy to the GPU, {label}", size, lambda size=size: copy_seconds(size, True))
        add(f"copy from the GPU, {label}", size, lambda size=size: copy_seconds(size, False))
    for label, size in IPC_SIZES.items():
        add(f"copy within the GPU, {label}", size, lambda size=size: across_seconds(size))
    for path in PATHS:
        peer = Peer(path)
        for device in ("cpu", "cuda"):
            add(f"{path}: write 8 B {device}", 8, lambda d=device, p=peer: small_seconds(p, d))
            add(f"{path}: the call alone, {device}", 8, lambda d=device, p=peer: call_seconds(p, d))
        sizes = {} if path == "ipc" else SIZES
        for label, size in IPC_SIZES.items() if path == "ipc" else ():
            add(
                f"{path}: write {label} cuda to cuda",
                size,
                lambda p=peer, s=size: write_seconds(p, ("cuda", "cuda"), s, "nvlink"),
            )
        for label, size in sizes.items():
            for ends in ENDS:
                add(
                    f"{path}: write {label} {ends[0]} to {ends[1]}",
                    size,
                    lambda p=peer, e=ends, s=size: write_seconds(p, e, s),
                )
        peer.close()


def targets(rows: list[dict[str, Any]]) -> None:
    """The issue's targets that these rows can tell of."""
    found = {row["case"]: row["median_s"] for row in rows}
    for label in SIZES:
        host, gpu = (found.get(f"tcp: write {label} {d} to {d}") for d in ("cpu", "cuda"))
        if host and gpu:
            verdict = "holds" if host / gpu >= 0.9 else "MISSED"
            print(f"GPU over TCP, {label}: {host / gpu:.2f} x host memory, target 0.90  {verdict}")
    for label in IPC_SIZES:
        own, other = (
            found.get(f"{case} {label}{ends}")
            for case, ends in (("copy within the GPU,", ""), ("ipc: write", " cuda to cuda"))
        )
        if own and other:
            verdict = "holds" if own / other >= 0.95 or label != "1 GiB" else "MISSED"
            target = ", target 0.95  " + verdict if label == "1 GiB" else ""
            print(f"GPU to GPU by CUDA IPC, {label}: {own / other:.2f} x the GPU's copy{target}")
    for label in SIZES:
        stages = [
            found.get(f"{stage}, {label}") for stage in ("copy from the GPU", "copy to the GPU")
        ] + [found.get(f"host: write {label} cpu to cpu")]
        whole = found.get(f"host: write {label} cuda to cuda")
        if whole and all(stages):
            slowest = max(stage for stage in stages if stage)
            verdict = "holds" if whole <= 1.1 * slowest else "MISSED"
            print(
                f"pipeline over host memory, {label}: {whole / slowest:.2f} x its slowest stage, "
                f"target 1.10  {verdict}"
            )
    for path in ("host", "ipc"):
        small = found.get(f"{path}: write 8 B cuda")
        if small:
            print(f"8 B written from GPU to GPU ({path}): {small * 1e6:.1f} us")
    calls = [found.get(f"host: the call alone, {d}") for d in ("cpu", "cuda")]
    if calls[0] and calls[1]:
        cost = calls[1] - calls[0]
        verdict = "holds" if cost <= 10e-6 else "MISSED"
        print(f"stream hand-over: {cost * 1e6:.1f} us of the host, target 10  {verdict}")


if __name__ == "__main__":
    sys.exit(run(__doc__ or "", measure, targets))
