"""Stage: demo. The process that does both, prefill and decode: what the other two are checked by.

Runs in a child process, on its main thread, after the others have ended. What always holds: it
knows nothing of pages, engines or rails; its cache is the one of transformers.
"""

from __future__ import annotations

import torch

from torch_tent.demo.children import Line
from torch_tent.demo.model import build, collect, dense_cache, generate, prefill
from torch_tent.demo.plan import THREADS, Plan
from torch_tent.demo.told import Alone


def work(line: Line, plan: Plan) -> None:
    """The process. Tells "computed" (tokens), "token", "done"."""
    torch.set_num_threads(THREADS)
    shape, prompt = plan.shape, plan.prompt
    model, cache = build(shape), dense_cache()
    for chunk in prefill(model, prompt, shape, cache):
        line.tell("computed", chunk.last - chunk.first)
    steps = []
    for step in generate(model, prompt[-1], shape.generated, cache):
        steps.append(step)
        line.tell("token", step[0])
    found = collect(steps)
    line.tell("done", Alone(found.tokens, found.logits.tolist()))
