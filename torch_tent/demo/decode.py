"""Stage: demo. The decode process: owns the cache that is filled, and generates once it is.

Runs in a child process, on its main thread. What always holds: nothing is generated before the
notifications of every layer of every chunk have come.
"""

from __future__ import annotations

import time

import torch

import torch_tent as tent
from torch_tent.demo.children import Line
from torch_tent.demo.doors import engine_behind
from torch_tent.demo.model import build, digest_of, empty_pages, generate, paged_cache
from torch_tent.demo.plan import PATIENCE_S, THREADS, TRANSFER_S_MAX, Plan, note_of
from torch_tent.demo.prompt import chunks
from torch_tent.demo.told import Decoded


def work(line: Line, plan: Plan) -> None:
    """The process. Tells "ready" (ticket, block table), "landed", "token", "done"."""
    shape = plan.shape
    torch.set_num_threads(THREADS)
    model = build(shape)
    blocks = shape.blocks(len(plan.prompt) + shape.generated)
    # As in a server that has been running for a while: free blocks lie anywhere.
    table = torch.randperm(blocks, generator=torch.Generator().manual_seed(shape.seed))
    pages = empty_pages(shape, blocks)
    engine = engine_behind(line, plan, "decode")
    try:
        with tent.KVCache(pages, block_dim=1, access="write", engine=engine) as cache:
            line.tell("ready", (cache.ticket(), table.tolist()))
            line.hear("began", PATIENCE_S)
            landed_ns = collect_notes(line, plan, cache)
            paged = paged_cache(pages, table, len(plan.prompt) - 1)
            tokens, tokens_ns, logits = [], [], []
            for token, found in generate(model, plan.prompt[-1], shape.generated, paged):
                tokens_ns.append(time.monotonic_ns())
                tokens.append(token)
                logits.append(found.tolist())
                line.tell("token", token)
            digest = digest_of(paged_cache(pages, table, len(plan.prompt) - 1))
            line.tell("done", Decoded(landed_ns, tokens, tokens_ns, logits, digest))
            line.hear("end", PATIENCE_S)
    finally:
        engine.close()


def collect_notes(line: Line, plan: Plan, cache: tent.KVCache) -> dict[bytes, int]:
    """Waits until each write's notification has come, exactly once. Returns when each was seen."""
    shape = plan.shape
    awaited = {
        note_of(chunk.index, layer): (chunk.last - chunk.first) * shape.token_bytes // shape.layers
        for chunk in chunks(len(plan.prompt), shape)
        for layer in range(shape.layers)
    }
    landed_ns: dict[bytes, int] = {}
    while len(landed_ns) < len(awaited):
        note = cache.wait_notification(TRANSFER_S_MAX)
        if note is None:
            missing = len(awaited) - len(landed_ns)
            raise TimeoutError(
                f"{missing} of {len(awaited)} notifications did not come within "
                f"{TRANSFER_S_MAX:g} s of the one before"
            )
        if note.payload in landed_ns or note.payload not in awaited:
            raise RuntimeError(f"the notification {note.payload!r} came twice or was never sent")
        landed_ns[note.payload] = time.monotonic_ns()
        line.tell("landed", awaited[note.payload])
    return landed_ns
