"""Stage: tests. torch.distributed on CUDA tensors, in real processes.

Without a GPU, torch's CUDA is that of tests/torch_on_fake.py: whoever touches a GPU's memory from
the CPU, uses memory that was freed, or does not wait for a stream, is found out. With one, it is
torch's own (tests/torch_on_gpu.py): benchmarks/gpu.sh runs these tests, too."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import torch_tent as tent
from tests import torch_on_fake, torch_on_gpu
from tests.groups import all_wrong, member, run_group
from tests.processes import Processes
from tests.reductions import DTYPES, OPS, is_defined, reduced, whole_numbers

# The first test compiles a native module with torch's headers, which takes minutes.
pytestmark = pytest.mark.timeout(600)

# Elements: one, what goes with a message, several chunks of a ring.
COUNTS = [1, 1000, 300_001]
WITHOUT_SIGN = {torch.uint16, torch.uint32, torch.uint64}


@pytest.fixture(scope="module", autouse=True)
def _built() -> None:
    if not torch.cuda.is_available():
        torch_on_fake.build()


def cuda() -> Any:
    """This process's CUDA."""
    return (torch_on_gpu if torch.cuda.is_available() else torch_on_fake).use()


def parts(size: int, count: int, dtype: torch.dtype = torch.float32, op: str = "SUM") -> Any:
    """What the ranks contribute: every rank can compute everybody's."""
    generator = torch.Generator().manual_seed(count)
    return [whole_numbers(count, dtype, op, generator) for _ in range(size)]


def same(gpu: torch.Tensor, truth: torch.Tensor) -> bool:
    found = gpu.cpu()
    return gpu.is_cuda and found.dtype == truth.dtype and found.equal(truth)


def divided_alike(gpu: torch.Tensor, truth: torch.Tensor) -> bool:
    """As same(), but a real GPU divides by multiplying with the inverse, and rounds twice."""
    exact = not torch.cuda.is_available() or not (gpu.is_floating_point() or gpu.is_complex())
    if exact or gpu.dtype != truth.dtype:
        return same(gpu, truth)
    tolerance = 2 * torch.finfo(truth.dtype).eps
    return gpu.is_cuda and torch.allclose(gpu.cpu(), truth, rtol=tolerance, atol=0)


# ---- every collective ---------------------------------------------------------------------------


def reductions(rank: int, size: int) -> Iterator[str]:
    """Names what is wrong with reductions of every dtype and operation."""
    gpu = cuda()
    for dtype in DTYPES:
        for op in OPS:
            unknown = dtype in WITHOUT_SIGN and op in {"MIN", "MAX", "AVG"}
            if unknown or not is_defined(op, dtype) or (dtype.is_complex and op == "PRODUCT"):
                continue
            for count in COUNTS if dtype == torch.float32 else COUNTS[:2]:
                every = parts(size, count, dtype, op)
                truth = reduced(op, every)
                mine = gpu.to_gpu(every[rank])
                dist.all_reduce(mine, getattr(dist.ReduceOp, op))
                if not (divided_alike(mine, truth) if op == "AVG" else same(mine, truth)):
                    yield f"all_reduce {op} {dtype} {count}"
    for count in COUNTS:
        every = parts(size, count * size)
        mine, root = gpu.to_gpu(every[rank]), size - 1
        dist.reduce(mine, root)
        if not same(mine, reduced("SUM", every) if rank == root else every[rank]):
            yield f"reduce {count}"
        piece = gpu.to_gpu(torch.zeros(count))
        dist.reduce_scatter_tensor(piece, gpu.to_gpu(every[rank]))
        if not same(piece, reduced("SUM", every).view(size, -1)[rank]):
            yield f"reduce_scatter_tensor {count}"
        piece = gpu.to_gpu(torch.zeros(count))
        dist.reduce_scatter(piece, list(gpu.to_gpu(every[rank]).view(size, -1).unbind()))
        if not same(piece, reduced("SUM", every).view(size, -1)[rank]):
            yield f"reduce_scatter {count}"


def moves(rank: int, size: int) -> Iterator[str]:
    """Names what is wrong with collectives that move bytes."""
    gpu = cuda()
    for count in COUNTS:
        every = parts(size, count)
        for root in range(size):
            mine = gpu.to_gpu(every[rank])
            dist.broadcast(mine, root)
            if not same(mine, every[root]):
                yield f"broadcast {count}"
            outputs = [gpu.to_gpu(torch.zeros(count)) for _ in every] if rank == root else None
            dist.gather(gpu.to_gpu(every[rank]), outputs, root)
            if outputs is not None and not all(map(same, outputs, every)):
                yield f"gather {count}"
            piece = gpu.to_gpu(torch.zeros(count))
            inputs = [gpu.to_gpu(t) for t in every] if rank == root else None
            dist.scatter(piece, inputs, root)
            if not same(piece, every[rank]):
                yield f"scatter {count}"
        outputs = [gpu.to_gpu(torch.zeros(count)) for _ in every]
        dist.all_gather(outputs, gpu.to_gpu(every[rank]))
        if not all(map(same, outputs, every)):
            yield f"all_gather {count}"
        flat = gpu.to_gpu(torch.zeros(count * size))
        dist.all_gather_into_tensor(flat, gpu.to_gpu(every[rank]))
        if not same(flat, torch.cat(every)):
            yield f"all_gather_into_tensor {count}"
        wide = [t.repeat(size) + torch.arange(size).repeat_interleave(count) for t in every]
        expected = torch.cat([t.view(size, -1)[rank] for t in wide])
        dist.all_to_all_single(flat, gpu.to_gpu(wide[rank]))
        if not same(flat, expected):
            yield f"all_to_all_single {count}"
        outputs = [gpu.to_gpu(torch.zeros(count)) for _ in every]
        dist.all_to_all(outputs, list(gpu.to_gpu(wide[rank]).view(size, -1).unbind()))
        if not all(map(same, outputs, expected.view(size, -1))):
            yield f"all_to_all {count}"


def odd_tensors(rank: int, size: int) -> Iterator[str]:
    """Strides, factors, several tensors in one call, ranks on different GPUs and on the CPU."""
    gpu = cuda()
    every = [t.view(100, 7) for t in parts(size, 700)]
    mine = gpu.to_gpu(every[rank]).t()
    dist.all_reduce(mine)
    if not same(mine, reduced("SUM", every).t()):
        yield "a transposed tensor"
    mine = gpu.to_gpu(every[rank])
    dist.all_reduce(mine, dist._make_nccl_premul_sum(0.5))
    if not same(mine, reduced("SUM", every) / 2):
        yield "a factor"
    several = [gpu.to_gpu(t) for t in (every[rank], every[rank] * 2)]
    with dist._coalescing_manager(async_ops=True) as both:
        for tensor in several:
            dist.all_reduce(tensor)
    both.wait()
    if not all(same(t, reduced("SUM", every) * n) for n, t in enumerate(several, 1)):
        yield "several tensors"
    mine = every[rank].clone() if rank == 0 else gpu.to_gpu(every[rank], device=rank % 2)
    dist.all_reduce(mine)
    if not mine.cpu().equal(reduced("SUM", every)):
        yield "different devices"
    rows = [size + rank] * size
    flat = gpu.to_gpu(torch.zeros(sum(size + r for r in range(size))))
    given = gpu.to_gpu(torch.full((sum(rows),), float(rank)))
    dist.all_to_all_single(flat, given, [size + r for r in range(size)], rows)
    if not same(flat, torch.cat([torch.full((size + r,), float(r)) for r in range(size)])):
        yield "uneven rows"


@pytest.mark.parametrize("size", [2, 3])
def test_every_collective_is_right(size: int) -> None:
    found = run_group(all_wrong, size, reductions, moves, odd_tensors, timeout=200.0)
    assert found == [[]] * size


# ---- messages -----------------------------------------------------------------------------------


def messages(rank: int, size: int) -> None:
    gpu = cuda()
    for count in COUNTS:
        x = gpu.full(count, float(rank))
        if rank == 0:
            dist.send(x, 1, tag=5)
            assert dist.recv(x) == 1
            assert same(x, torch.full((count,), 1.0))
        else:
            y = gpu.full(2 * count, -1.0).view(count, 2)[:, 1]  # odd strides
            dist.recv(y, 0, tag=5)
            assert same(y, torch.zeros(count))
            dist.send(x, 0)
        theirs = gpu.full(count, -1.0)
        pair = [dist.P2POp(dist.irecv, theirs, 1 - rank), dist.P2POp(dist.isend, x, 1 - rank)]
        for work in dist.batch_isend_irecv(pair):
            work.wait()
        assert theirs.cpu()[0] in (0.0, 1.0)
    plain = torch.zeros(3)  # the peer's is on a GPU
    dist.recv(plain, 0) if rank else dist.send(gpu.full(3, 7.0), 1)
    assert rank == 0 or plain.tolist() == [7.0] * 3


def test_messages() -> None:
    run_group(messages, 2, timeout=60.0)


# ---- streams ------------------------------------------------------------------------------------


def warm(gpu: Any) -> None:
    """A GPU's driver loads kernels, and an engine opens a GPU, when they are first needed, and
    both wait for what is queued on it."""
    x = gpu.full(1000, 1.0)
    dist.all_reduce(x)
    gpu.fill(x, 0)
    x.clone()
    gpu.synchronize()


def order(rank: int, size: int) -> None:
    gpu = cuda()
    for count, held in itertools.product(COUNTS, (False, True)):  # The first loads the kernels.
        x, strided = gpu.full(count, -1.0), gpu.full(2 * count, -1.0).view(count, 2)[:, 0]
        gathered = gpu.full(count * size, -1.0)
        with gpu.stream():
            if held:
                gpu.hold()
            gpu.fill(x, 0)
            works = [dist.all_reduce(x, async_op=True)]
            works.append(dist.broadcast(strided, 0, async_op=True))
            works.append(dist.all_gather_into_tensor(gathered, x, async_op=True))
            assert not held or not any(work.is_completed() for work in works)
            gpu.go_on()
            for work in works:
                work.wait()
            after = [t.clone() for t in (x, strided, gathered)]  # On this stream, nothing else.
            assert same(after[0], torch.zeros(count))
            assert same(after[1], torch.full((count,), -1.0))
            assert same(after[2], torch.zeros(count * size))


def other_streams(rank: int, size: int) -> None:
    """A stream that is stuck holds nobody up but what was asked for in it."""
    gpu = cuda()
    warm(gpu)
    stuck, free = gpu.full(1000, 1.0), gpu.full(1000, 1.0)
    gpu.hold()
    first = dist.all_reduce(stuck, async_op=True)
    with gpu.stream():
        dist.all_reduce(free)
        assert same(free, torch.full((1000,), float(size)))
    assert not first.is_completed()
    gpu.go_on()
    first.wait()
    assert same(stuck, torch.full((1000,), float(size)))


def stuck_too_long(rank: int, size: int) -> None:
    gpu = cuda()
    warm(gpu)
    x = gpu.full(1000, 1.0)
    group = dist.new_group(timeout=timedelta(seconds=1))
    gpu.hold()
    work = dist.all_reduce(x, group=group, async_op=True)
    with pytest.raises(RuntimeError, match="queued on the GPU's stream before the call"):
        work.wait()
    gpu.go_on()
    gpu.synchronize()
    assert same(x, torch.full((1000,), 1.0))


def futures(rank: int, size: int) -> None:
    gpu = cuda()
    strided = gpu.full(20_000, float(rank)).view(10_000, 2)[:, 0]
    for x in (gpu.full(10_000, float(rank)), strided):
        work = dist.all_reduce(x, async_op=True)
        called = threading.Event()
        doubled = work.get_future().then(lambda f: f.value()[0].clone().mul_(2))
        doubled.add_done_callback(lambda _, called=called: called.set())
        assert called.wait(20)
        total = size * (size - 1) / 2
        assert same(doubled.wait(), torch.full((10_000,), 2 * total))
        work.wait()
        assert same(x, torch.full((10_000,), total))


def dropped(rank: int, size: int) -> None:
    """Works and tensors that nobody keeps."""
    gpu = cuda()
    for n in range(5):
        if rank == 0:
            dist.isend(gpu.full(100_000, float(n)), 1, tag=n)
        else:
            x = gpu.full(100_000, -1.0)
            dist.recv(x, 0, tag=n)
            assert same(x, torch.full((100_000,), float(n)))
        dist.all_reduce(gpu.full(100_000, 1.0), async_op=True)
    dist.barrier()


@pytest.mark.parametrize("function", [order, other_streams, stuck_too_long, futures, dropped])
def test_streams(function: Any) -> None:
    run_group(function, 2, timeout=60.0)


# ---- what goes wrong ----------------------------------------------------------------------------


def refused(rank: int, size: int) -> None:
    gpu = cuda()
    x = gpu.full(100, 1.0)
    with gpu.stream() as stream:
        gpu.driver.c.capture(stream, 1)
        with pytest.raises(RuntimeError, match="captured in a CUDA graph"):
            dist.all_reduce(x)
        with pytest.raises(RuntimeError, match="captured in a CUDA graph"):
            dist.send(x, 1 - rank)
        gpu.driver.c.capture(stream, 0)
    with pytest.raises(RuntimeError, match="must be on one device"):
        dist.all_gather([x, torch.zeros(100)], x)
    with pytest.raises(RuntimeError, match="convert the tensor to a signed dtype"):
        dist.all_reduce(gpu.to_gpu(torch.zeros(3, dtype=torch.uint16)), dist.ReduceOp.MAX)
    gone = gpu.full(100_000, 1.0)
    gpu.driver.c.free(gone.data_ptr())
    with pytest.raises(RuntimeError, match="not known to the CUDA driver"):
        dist.all_reduce(gone)
    dist.all_reduce(x)  # What was refused has not put the ranks out of step.
    assert same(x, torch.full((100,), float(size)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="plays with the fake driver")
def test_what_cannot_work_is_refused_at_the_call() -> None:
    run_group(refused, 2, timeout=60.0)


def a_fork_ends(rank: int, size: int) -> None:
    """The child has none of the group's threads, and does not wait for them."""
    gpu = cuda()
    dist.all_reduce(gpu.full(1000, 1.0))
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        dist.destroy_process_group()
        gc.collect()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    dist.barrier()


def test_a_child_of_fork_can_let_the_group_go() -> None:
    run_group(a_fork_ends, 2, timeout=60.0)


def a_rank_dies(rank: int, size: int, meeting: str) -> None:
    gpu = cuda()
    with member(rank, size, meeting):
        x = gpu.full(300_001, 1.0)
        dist.all_reduce(x)
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(RuntimeError, match="rank 1 is lost"):
            dist.all_reduce(x)
        gpu.fill(x, 0)  # Nothing comes into it any more.
        assert same(x, torch.zeros(300_001))


def test_a_lost_rank_is_an_error_that_names_it(tmp_path: Path) -> None:
    with Processes(a_rank_dies, 2, str(tmp_path / "meeting")) as ranks:
        ranks.results(60.0, lost={1})


# ---- beside other backends ----------------------------------------------------------------------


def beside_gloo(rank: int, size: int) -> None:
    gpu = cuda()
    x = gpu.full(10, float(rank))
    dist.all_reduce(x)
    assert same(x, torch.full((10,), 1.0))
    plain = torch.full((10,), float(rank))
    dist.all_reduce(plain)
    dist.barrier()
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    assert [each["rank"] for each in objects] == list(range(size))
    if rank == 0:
        tent.send(x, dst=1, tag=3).wait()
    else:
        assert same(tent.recv(gpu.full(10, 0.0), src=0, tag=3).wait(), torch.full((10,), 1.0))


@pytest.mark.parametrize("backend", ["tent", "cpu:gloo,cuda:tent"])
def test_the_backend_is_that_of_cuda_tensors(backend: str) -> None:
    run_group(beside_gloo, 2, timeout=60.0, backend=backend)
