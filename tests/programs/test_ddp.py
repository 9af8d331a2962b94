"""Stage: tests. DistributedDataParallel on tent and on gloo: hooks, buckets that overlap with the
backward pass, unused parameters, uneven inputs, sparse gradients, and what DDP logs of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from tests.groups import run_group
from tests.programs.twins import model, parameters, same_as_gloo, train

STEPS = 4
SMALL_MB = 0.01  # Buckets so small that there are several under way at once.


def plain(rank: int, size: int) -> dict[str, torch.Tensor]:
    module = DistributedDataParallel(model(), bucket_cap_mb=SMALL_MB, gradient_as_bucket_view=True)
    train(module, rank)
    return parameters(module)


def static_graph(rank: int, size: int) -> dict[str, torch.Tensor]:
    module = DistributedDataParallel(model(), bucket_cap_mb=SMALL_MB, static_graph=True)
    train(module, rank)
    return parameters(module)


def hooked(
    hook: Any, state: Any, rank: int, bucket_mb: float = SMALL_MB
) -> dict[str, torch.Tensor]:
    module = DistributedDataParallel(model(), bucket_cap_mb=bucket_mb)
    module.register_comm_hook(state, hook)
    train(module, rank)
    return parameters(module)


def half_precision(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Gradients travel as float16; the hook chains on the future of the all_reduce."""
    return hooked(default_hooks.fp16_compress_hook, None, rank)


def wrapped_hook(rank: int, size: int) -> dict[str, torch.Tensor]:
    wrapped = default_hooks.fp16_compress_wrapper(default_hooks.allreduce_hook)
    return hooked(wrapped, dist.group.WORLD, rank)


def power_sgd(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Collectives that are started, and waited for, in a callback of the one before. One bucket:
    with several, their order would differ from rank to rank, on any backend."""
    state = powerSGD_hook.PowerSGDState(
        process_group=None, matrix_approximation_rank=2, start_powerSGD_iter=2,
        min_compression_rate=0.5,
    )  # fmt: skip
    return hooked(powerSGD_hook.powerSGD_hook, state, rank, bucket_mb=25)


def own_hook(rank: int, size: int) -> dict[str, torch.Tensor]:
    """A hook in Python whose callbacks run on whichever thread ends the collective."""

    def gather_and_add(state, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations
        flat = bucket.buffer()
        every = [torch.empty_like(flat) for _ in range(size)]
        work = dist.all_gather(every, flat, async_op=True)
        assert work is not None
        return work.get_future().then(lambda done: sum(done.value()) / size)

    return hooked(gather_and_add, None, rank)


def accumulated(rank: int, size: int) -> dict[str, torch.Tensor]:
    module = DistributedDataParallel(model(), bucket_cap_mb=SMALL_MB)
    with module.no_sync():
        module(torch.full((4, 20), 0.1 * rank)).sum().backward()
    module(torch.full((4, 20), 0.3 + rank)).sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}  # type: ignore


class Branches(nn.Module):
    """Uses one of two layers, as the input says, and never the third."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.layers = nn.ModuleList(nn.Linear(20, 5) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers[int(x.sum() > 0)](x)
        return found


def unused(rank: int, size: int) -> dict[str, torch.Tensor]:
    module = DistributedDataParallel(Branches(), find_unused_parameters=True)
    train(module, rank, 2 * STEPS)
    return parameters(module)


def uneven(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Ranks with different numbers of steps: who is ready shadows the others' collectives."""
    module = DistributedDataParallel(model(), bucket_cap_mb=SMALL_MB)
    with module.join():
        train(module, rank, STEPS + 2 * rank)
    other = DistributedDataParallel(Branches(), find_unused_parameters=True)
    with other.join(divide_by_initial_world_size=False):
        train(other, rank, STEPS + rank)
    return parameters(module) | {"other." + n: p for n, p in parameters(other).items()}


def sparse(rank: int, size: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    module = DistributedDataParallel(
        nn.Sequential(nn.Embedding(30, 8, sparse=True), nn.Linear(8, 5))
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(STEPS):
        module(torch.arange(rank, 12 + 3 * rank, step + 1)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return parameters(module)


def buffers(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Rank 0's running statistics are everybody's in each forward pass."""
    torch.manual_seed(4)
    module = DistributedDataParallel(nn.Sequential(nn.Linear(20, 9), nn.BatchNorm1d(9)))
    for step in range(STEPS):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(10 * step + rank))
        module(x).sum().backward()
    return {name: b.detach().float().clone() for name, b in module.named_buffers()}


def sharded_optimizer(rank: int, size: int) -> dict[str, torch.Tensor]:
    module = DistributedDataParallel(model(), bucket_cap_mb=SMALL_MB)
    optimizer = ZeroRedundancyOptimizer(
        module.parameters(), optimizer_class=torch.optim.Adam, lr=0.01
    )
    for step in range(STEPS):
        module(torch.full((4, 20), 0.1 * rank + step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.consolidate_state_dict(0)
    return parameters(module)


PROGRAMS = [
    plain, static_graph, half_precision, wrapped_hook, power_sgd, own_hook, accumulated, unused,
    uneven, sparse, buffers, sharded_optimizer,
]  # fmt: skip


@pytest.mark.timeout(240)
def test_two_ranks_get_the_bits_that_gloo_gives() -> None:
    """Two operands have one order."""
    ours = same_as_gloo(2, PROGRAMS)
    first = ours[0]["plain"]["module.0.weight"]
    assert not torch.equal(first, parameters(model())["0.weight"]), "nothing was learned"


@pytest.mark.timeout(240)
def test_three_ranks_get_what_gloo_gives() -> None:
    """Sums of three floats depend on their order; Adam turns a rounding into some millionths."""
    same_as_gloo(3, [plain, own_hook, uneven, sparse, unused], tolerance=1e-4)


# ---- the log ------------------------------------------------------------------------------------

TIMES = "time"
OWN_NAME = {"backend_name"}  # See docs/conformance.md.
OF_GLOO = {"gloo_socket_ifname", "gloo_device_transport", "gloo_num_threads"}


def logged(rank: int, size: int) -> dict[str, Any]:
    dist.set_debug_level(dist.DebugLevel.INFO)
    module = DistributedDataParallel(model(), bucket_cap_mb=SMALL_MB)
    train(module, rank, 12)
    return {key: str(value) for key, value in module._get_ddp_logging_data().items()}


def test_ddp_logs_what_it_logs_on_gloo() -> None:
    ours, theirs = (run_group(logged, 2, backend=b)[1] for b in ("tent", "gloo"))

    def kept(fields: dict[str, Any]) -> dict[str, Any]:
        left_out = OWN_NAME | OF_GLOO
        return {k: v for k, v in fields.items() if k not in left_out and TIMES not in k}

    assert len(kept(ours)) > 20
    assert kept(ours) == kept(theirs)
    assert ours["backend_name"] == "custom"  # torch's word for every backend that is not its own
