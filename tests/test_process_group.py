"""Stage: tests. Every collective of torch.distributed on the backend "tent", against what this
process computes by itself. Many checks share one group of processes, for speed."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_tent_autoload
from tests.groups import all_wrong, run_group
from tests.processes import run_processes
from tests.reductions import DTYPES, OPS, is_defined, reduced, whole_numbers

# Elements: nothing, one, inline messages, one beyond small_bytes, several chunks of a ring.
COUNTS = [0, 1, 1000, 9001, 700_001]
MOVED = [*DTYPES, torch.float8_e4m3fn]
ROOT = Path(__file__).resolve().parent.parent


def part(rank: int, count: int, dtype: torch.dtype, op: str = "SUM", key: int = 0) -> torch.Tensor:
    """What a rank contributes: every rank can compute everybody's."""
    if dtype == torch.float8_e4m3fn:
        return part(rank, count, torch.uint8, op, key).view(dtype)
    generator = torch.Generator().manual_seed(1_000_003 * key + 7919 * rank + count)
    return whole_numbers(count, dtype, op, generator)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and raw(a).equal(raw(b))


def raw(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().view(torch.uint8)


def reductions(rank: int, size: int) -> Iterator[str]:
    """Names what is wrong with reductions of every dtype and operation."""
    root = size - 1
    for dtype, op in itertools.product(DTYPES, OPS):
        if not is_defined(op, dtype) or (dtype.is_complex and op == "PRODUCT"):
            continue
        code = getattr(dist.ReduceOp, op)
        for count in COUNTS if dtype in {torch.float32, torch.bfloat16} else COUNTS[:3]:
            every = [part(r, count, dtype, op) for r in range(size)]
            truth = reduced(op, every)
            mine = every[rank].clone()
            dist.all_reduce(mine, code)
            if not same(mine, truth):
                yield f"all_reduce {op} {dtype} {count}"
            mine = every[rank].clone()
            dist.reduce(mine, root, code)
            if not same(mine, truth if rank == root else every[rank]):
                yield f"reduce {op} {dtype} {count}"
            if count == 0:
                continue
            pieces = [[part(r, count, dtype, op, key) for key in range(size)] for r in range(size)]
            total = reduced(op, [row[rank] for row in pieces])
            piece = torch.empty_like(total)
            dist.reduce_scatter(piece, pieces[rank], code)
            single = torch.empty_like(total)
            dist.reduce_scatter_tensor(single, torch.cat(pieces[rank]), code)
            if not (same(piece, total) and same(single, total)):
                yield f"reduce_scatter {op} {dtype} {count}"


def moves(rank: int, size: int) -> Iterator[str]:
    """Names what is wrong with collectives that move bytes, for every dtype."""
    for dtype in MOVED:
        for count in COUNTS if dtype == torch.float32 else COUNTS[:3]:
            every = [part(r, count, dtype) for r in range(size)]
            for root in range(size):
                yield from rooted_moves(rank, size, root, every)
            outputs = [torch.empty_like(t) for t in every]
            dist.all_gather(outputs, every[rank])
            if not all(map(same, outputs, every)):
                yield f"all_gather {dtype} {count}"
            flat = torch.empty(size * count, dtype=dtype)
            dist.all_gather_into_tensor(flat, every[rank])
            if not same(flat, torch.cat(every)):
                yield f"all_gather_into_tensor {dtype} {count}"
            pieces = [[part(r, count, dtype, key=k) for k in range(size)] for r in range(size)]
            outputs = [torch.empty_like(t) for t in every]
            dist.all_to_all(outputs, pieces[rank])
            if not all(map(same, outputs, [row[rank] for row in pieces])):
                yield f"all_to_all {dtype} {count}"
            dist.all_to_all_single(flat, torch.cat(pieces[rank]))
            if not same(flat, torch.cat([row[rank] for row in pieces])):
                yield f"all_to_all_single {dtype} {count}"


def rooted_moves(rank: int, size: int, root: int, every: list[torch.Tensor]) -> Iterator[str]:
    label = f"from {root} {every[0].dtype} {every[0].numel()}"
    mine = every[rank].clone()
    dist.broadcast(mine, root)
    if not same(mine, every[root]):
        yield f"broadcast {label}"
    outputs = [torch.empty_like(t) for t in every] if rank == root else None
    dist.gather(every[rank], outputs, root)
    if outputs is not None and not all(map(same, outputs, every)):
        yield f"gather {label}"
    piece = torch.empty_like(mine)
    dist.scatter(piece, every if rank == root else None, root)
    if not same(piece, every[rank]):
        yield f"scatter {label}"


def uneven(rank: int, size: int) -> Iterator[str]:
    """Pieces of different sizes, some of them empty."""
    sizes = [(3 * r * r) % 11 if r != 1 else 0 for r in range(size)]
    for scale in (1, 5000):
        every = [part(r, scale * sizes[r], torch.float32) for r in range(size)]
        outputs = [torch.empty_like(t) for t in every]
        dist.all_gather(outputs, every[rank])
        if not all(map(same, outputs, every)):
            yield "uneven all_gather"
        rows = [[part(r, scale * n, torch.float32, key=1) for n in sizes] for r in range(size)]
        total = reduced("SUM", [row[rank] for row in rows])
        piece = torch.empty_like(total)
        dist.reduce_scatter(piece, rows[rank])
        if not same(piece, total):
            yield "uneven reduce_scatter"
        splits = [[(r + 2 * k) % 4 * scale for k in range(size)] for r in range(size)]
        whole = [part(r, sum(splits[r]), torch.int64, key=2) for r in range(size)]
        received = [row[rank] for row in splits]
        flat = torch.empty(sum(received), dtype=torch.int64)
        dist.all_to_all_single(flat, whole[rank], received, splits[rank])
        truth = torch.cat([whole[r].split(splits[r])[rank] for r in range(size)])
        if not same(flat, truth):
            yield "uneven all_to_all_single"


def strides(rank: int, size: int) -> Iterator[str]:
    """Tensors that are not contiguous, or conjugated views, as input and as output."""

    def grid(r: int) -> torch.Tensor:
        return part(r, 35, torch.float32, key=3).view(5, 7)

    every = [grid(r) for r in range(size)]
    total = reduced("SUM", every)
    frame = torch.full((7, 10), -1.0)
    frame[:, ::2] = every[rank].t()
    view = frame[:, ::2].t()
    dist.all_reduce(view)
    if not (same(view, total) and bool((frame[:, 1::2] == -1).all())):
        yield "all_reduce of a strided view"
    outputs = [torch.empty(7, 5).t() for _ in every]
    dist.all_gather(outputs, every[rank].t().contiguous().t())
    if not all(map(same, outputs, every)):
        yield "all_gather into strided views"
    wide = torch.empty(size * 5, 14)[:, ::2]
    dist.all_gather_into_tensor(wide, every[rank])
    if not same(wide, torch.cat(every)):
        yield "all_gather_into_tensor into a strided view"
    z = torch.complex(grid(0), grid(1)).conj() if rank == 0 else torch.zeros(5, 7).cfloat().conj()
    world: Any = dist.group.WORLD  # dist.broadcast views complex tensors as real ones itself
    world._get_backend(torch.device("cpu")).broadcast([z], dist.BroadcastOptions()).wait()
    if not torch.equal(z, torch.complex(grid(0), -grid(1))):
        yield "broadcast of a conjugated view"


def coalesced(rank: int, size: int) -> Iterator[str]:
    shapes = [3, 1000, 1, 20_000]
    every = [[part(r, n, torch.float32, key=4) for n in shapes] for r in range(size)]
    mine = [t.clone() for t in every[rank]]
    with dist._coalescing_manager():
        for t in mine:
            dist.all_reduce(t)
    if not all(same(t, reduced("SUM", list(c))) for t, *c in zip(mine, *every, strict=True)):
        yield "coalesced all_reduce"
    flats = [torch.empty(size * n) for n in shapes]
    with dist._coalescing_manager():
        for flat, t in zip(flats, every[rank], strict=True):
            dist.all_gather_into_tensor(flat, t)
    if not all(same(f, torch.cat(list(c))) for f, *c in zip(flats, *every, strict=True)):
        yield "coalesced all_gather"
    wide = [[part(r, size * n, torch.float32, key=5) for n in shapes] for r in range(size)]
    outs = [torch.empty(n) for n in shapes]
    with dist._coalescing_manager():
        for out, t in zip(outs, wide[rank], strict=True):
            dist.reduce_scatter_tensor(out, t)
    for i, out in enumerate(outs):
        if not same(out, reduced("SUM", [row[i] for row in wide]).chunk(size)[rank]):
            yield "coalesced reduce_scatter"


def premultiplied(rank: int, size: int) -> Iterator[str]:
    op = dist._make_nccl_premul_sum(0.5)
    every = [part(r, 100, torch.float32) for r in range(size)]
    truth = reduced("SUM", [t * 0.5 for t in every])
    mine = every[rank].clone()
    dist.all_reduce(mine, op)
    piece = torch.empty(100)
    rows = [every[rank].clone() for _ in range(size)]
    dist.reduce_scatter(piece, rows, op)
    if not (same(mine, truth) and same(piece, truth) and same(rows[0], every[rank])):
        yield "PREMUL_SUM"


def objects(rank: int, size: int) -> Iterator[str]:
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, {"rank": rank, "text": "x" * rank * 10_000})
    if gathered != [{"rank": r, "text": "x" * r * 10_000} for r in range(size)]:
        yield "all_gather_object"
    box = [("from", rank)]
    dist.broadcast_object_list(box, size - 1)
    if box != [("from", size - 1)]:
        yield "broadcast_object_list"


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_reductions(size: int) -> None:
    assert run_group(all_wrong, size, reductions) == [[]] * size


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_moves(size: int) -> None:
    checks = (moves, uneven, strides, coalesced, premultiplied, objects)
    assert run_group(all_wrong, size, *checks) == [[]] * size


def float_bits(rank: int, size: int) -> list[bytes]:
    found = []
    for count in (7, 9001, 700_001):
        for dtype in (torch.float32, torch.float16):
            x = torch.randn(count, generator=torch.Generator().manual_seed(rank)).to(dtype)
            dist.all_reduce(x)
            found.append(bytes(raw(x).numpy().data))
    return found


def test_all_ranks_get_the_same_bits() -> None:
    results = run_group(float_bits, 4)
    assert all(other == results[0] for other in results[1:])


# ---- ways to meet --------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def meet_and_sum(rank: int, size: int, how: str, port: int) -> float:
    torch_tent_autoload.register()
    common: dict[str, Any] = {"rank": rank, "world_size": size, "timeout": timedelta(seconds=20)}
    if how == "env":
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
        dist.init_process_group("tent", timeout=common["timeout"])
    elif how == "tcp":
        dist.init_process_group("tent", init_method=f"tcp://127.0.0.1:{port}", **common)
    elif how == "devices":
        dist.init_process_group("cpu:tent", init_method=f"tcp://127.0.0.1:{port}", **common)
    else:
        store = dist.TCPStore("127.0.0.1", port, size, rank == 0)
        dist.init_process_group("tent", store=store, **common)
    x = torch.tensor([float(rank)])
    dist.all_reduce(x)
    assert dist.get_backend() == ("cpu:tent" if how == "devices" else "tent")
    dist.destroy_process_group()
    return x.item()


@pytest.mark.parametrize("how", ["env", "tcp", "store", "devices"])
def test_ways_to_meet(how: str) -> None:
    assert run_processes(meet_and_sum, 3, how, free_port()) == [3.0] * 3


PROGRAM = """
import torch, torch.distributed as dist
import torch_tent_autoload; torch_tent_autoload.register()
dist.init_process_group("tent")
x = torch.ones(3) * dist.get_rank()
dist.all_reduce(x)
assert x.tolist() == [1.0] * 3
dist.destroy_process_group()
print("sum is right")
"""


def test_under_torchrun(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(free_port()), str(program)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env["TMPDIR"] = str(tmp_path)  # where it leaves its log
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sum is right") == 2


# ---- arguments that cannot work ------------------------------------------------------------------


def refusals(rank: int, size: int) -> list[str]:
    x = torch.zeros(4)
    group: Any = dist.group.WORLD
    backend = group._get_backend(torch.device("cpu"))
    fine, wrong_root = dist.BroadcastOptions(), dist.BroadcastOptions()
    wrong_root.rootRank = 5
    bitwise = dist.AllreduceOptions()
    bitwise.reduceOp = dist.ReduceOp.BAND
    attempts: list[tuple[str, Callable[[], Any]]] = [
        ("invalid root rank: 5", lambda: backend.broadcast([x], wrong_root)),
        ("only supports dense tensors", lambda: backend.broadcast([x.to_sparse()], fine)),
        ("requires non-empty tensor list", lambda: backend.allreduce([], dist.AllreduceOptions())),
        ("single-element tensor list", lambda: backend.allreduce([x, x], dist.AllreduceOptions())),
        ("only supports CPU and CUDA tensors", lambda: backend.broadcast([x.to("meta")], fine)),
        ("Cannot use ReduceOp.BAND", lambda: backend.allreduce([x], bitwise).wait()),
        ("cannot be reduced", lambda: dist.all_reduce(x.to(torch.float8_e4m3fn))),
        ("invalid tensor size", lambda: backend.allgather([[x[:3], x[:3]]], [x])),
        ("output list size", lambda: backend.allgather([[x]], [x])),
        ("invalid tensor type", lambda: backend.allgather([[x.int(), x.int()]], [x])),
        ("world_size times input", lambda: backend._allgather_base(x[:3], x)),
        ("output size times world size", lambda: backend._reduce_scatter_base(x[:3], x)),
        ("doesn't match total dim 0", lambda: dist.all_to_all_single(x, x, [1, 1], [1, 1])),
        ("does not divide equally", lambda: dist.all_to_all_single(x[:3], x[:3])),
        ("Tag must be nonnegative", lambda: dist.send(x, 1 - rank, tag=-1)),
        ("is not another rank", lambda: backend.send([x], rank, 0)),
        ("is not another rank", lambda: backend.recv([x], 9, 0)),
    ]
    wrong = []
    for words, attempt in attempts:
        try:
            attempt()
            wrong.append(f"{words}: nothing was raised")
        except RuntimeError as error:
            if words not in str(error):
                wrong.append(f"{words}: {error}")
    dist.all_reduce(x)  # Nothing of all that was sent.
    return wrong


def test_arguments_that_cannot_work_are_refused_at_the_call() -> None:
    assert run_group(refusals, 2) == [[], []]


def disagree(rank: int, size: int) -> str:
    try:
        dist.all_reduce(torch.zeros(10 + rank))
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_ranks_that_disagree_on_sizes_get_an_error() -> None:
    for rank, text in enumerate(run_group(disagree, 2)):
        assert text.startswith("DistBackendError: all_reduce on rank"), text
        assert f"rank {1 - rank}" in text
