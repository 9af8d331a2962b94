"""Stage: benchmarks. From which size on are scattered blocks of a GPU better copied one by one?

Run by gpu.sh, or by itself on a machine with a GPU: `python benchmarks/gpu_blocks.py`.
Two processes on one GPU; blocks of many sizes go from a cache to a cache, moved by launches and by
a copy each, in turns. What always holds: fresh data, every block compared after it was timed;
medians. What it prints last is what `gpu_gather_bytes_max` should be.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpu_run import Rows, run

import torch_tent as tent
from torch_tent.engines import Engine
from torch_tent.settings import Settings

KIB, MIB = 1 << 10, 1 << 20
BLOCK_BYTES = [2 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, 1 * MIB]
LAYERS, MOVED_BYTES = 32, 64 * MIB
PATHS = {"host": ("shm",), "ipc": ("shm", "cuda_ipc")}
WAYS = {"launches": 64 << 20, "copies": 0}  # gpu_gather_bytes_max
ROUNDS, WAIT_S, BUDGET_S = 5, 60.0, 45.0


def engine_of(path: str, way: str) -> Engine:
    return Engine(Settings(transports=PATHS[path], gpu_gather_bytes_max=WAYS[way]))


def layers_of(block_bytes: int) -> tuple[list[torch.Tensor], int]:
    """Layers with twice as many blocks as are moved, and how many are moved of each."""
    moved = MOVED_BYTES // LAYERS // block_bytes
    shape = (2 * moved, block_bytes)
    return [torch.zeros(shape, dtype=torch.uint8, device="cuda") for _ in range(LAYERS)], moved


def serve(pipe: Any, path: str, way: str) -> None:
    """The other process: a cache for each size, and whether every block in it has one value."""
    engine = engine_of(path, way)
    while True:
        word, *more = pipe.recv()
        if word == "cache":
            layers, _ = layers_of(*more)
            cache = tent.KVCache(layers, engine=engine)
            pipe.send(cache.ticket())
        elif word == "compare":
            blocks, value = more
            pipe.send(all(bool((layer[blocks] == value).all()) for layer in layers))
        else:
            engine.close()
            pipe.send(None)
            return


class Way:
    """Both processes, moving blocks one way."""

    def __init__(self, path: str, way: str) -> None:
        context = mp.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, path, way), daemon=True)
        self.process.start()
        self.engine = engine_of(path, way)
        self.require: Any = "nvlink" if path == "ipc" else None

    def ask(self, *words: Any) -> Any:
        self.pipe.send(words)
        if not self.pipe.poll(WAIT_S):
            raise TimeoutError(f"the other process did not answer {words[0]}")
        return self.pipe.recv()

    def begin(self, block_bytes: int) -> None:
        self.layers, moved = layers_of(block_bytes)
        self.cache = tent.KVCache(self.layers, engine=self.engine)
        self.remote: Any = self.engine.open(self.ask("cache", block_bytes))
        draw = torch.Generator().manual_seed(block_bytes)
        self.sources, self.targets = (
            torch.randperm(2 * moved, generator=draw)[:moved] for _ in range(2)
        )

    def seconds(self, value: int) -> float:
        for layer in self.layers:
            layer.fill_(value)
        torch.cuda.synchronize()
        began = time.perf_counter()
        self.engine.write_blocks(
            self.cache, self.sources, self.remote, self.targets, require=self.require
        ).wait(WAIT_S)
        took = time.perf_counter() - began
        if not self.ask("compare", self.targets.cuda(), value):
            raise AssertionError("wrong bytes arrived")
        return took

    def close(self) -> None:
        self.ask("end")
        self.engine.close()
        self.process.join(10)


def measure(path: str, until: float, rows: list[dict[str, Any]]) -> None:
    ways = {name: Way(path, name) for name in WAYS}
    for block_bytes in BLOCK_BYTES:
        if time.monotonic() > until:
            print(f"{path}: blocks of {block_bytes >> 10} KiB left out: no time", flush=True)
            continue
        times: dict[str, list[float]] = {name: [] for name in ways}
        for way in ways.values():
            way.begin(block_bytes)
        for turn in range(ROUNDS + 1):
            for name, way in ways.items():
                took = way.seconds(turn + 1)
                times[name] += [took] if turn else []  # The first makes links and windows.
        medians = {name: statistics.median(found) for name, found in times.items()}
        rows.append({"path": path, "block_bytes": block_bytes, "bytes": MOVED_BYTES, **medians})
        speeds = ", ".join(
            f"{name} {MOVED_BYTES / took / 1e9:7.2f} GB/s" for name, took in medians.items()
        )
        print(f"{path}: blocks of {block_bytes >> 10:4} KiB: {speeds}", flush=True)
    for name, way in ways.items():
        for gpu in way.engine.native.stats()["gpus"]:
            print(f"{path}, {name}: {gpu}", flush=True)
        way.close()


def threshold(rows: list[dict[str, Any]]) -> None:
    """The smallest size from which on copies are as quick, on each path."""
    for path in PATHS:
        sizes = [row for row in rows if row["path"] == path]
        found = None
        for row in reversed(sizes):
            if row["copies"] > row["launches"]:
                break
            found = row["block_bytes"]
        if sizes:
            text = f"{found >> 10} KiB" if found else f"above {sizes[-1]['block_bytes'] >> 10} KiB"
            print(f"{path}: copies are as quick from {text} on (gpu_gather_bytes_max)")


def measure_all(rows: Rows) -> None:
    until = time.monotonic() + BUDGET_S
    for path in PATHS:
        measure(path, until, rows)


if __name__ == "__main__":
    sys.exit(run(__doc__ or "", measure_all, threshold))
