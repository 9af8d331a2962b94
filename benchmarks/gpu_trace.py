"""Stage: benchmarks. What the pipeline from GPU to GPU over TCP does when: a trace, and a picture.

Run by gpu.sh, or by itself on a machine with a GPU: `python benchmarks/gpu_trace.py --json FILE`;
`--draw FILE.svg` makes the picture of docs/gpu.md out of such a FILE, on any machine with
matplotlib. Two processes on one GPU; their clocks are the same. What always holds: what is drawn
was measured, in one transfer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from gpu import MIB, WAIT_S, Peer

BYTES = 64 * MIB
STAGES = ("copies out of the GPU", "slices on TCP", "copies into the GPU")


def traced() -> dict[str, Any]:
    """The spans of each stage in one write, as [begun, ended, bytes], in ns from the call on."""
    peer = Peer("tcp")
    remote = peer.remote("cuda", BYTES)
    x = torch.randint(0, 255, (BYTES,), dtype=torch.uint8, device="cuda")
    for _ in range(4):  # Links, page-locked memory, windows.
        peer.engine.write(x, remote).wait(WAIT_S)
    own = peer.engine.native
    own.trace(True)
    peer.ask("trace", True)
    torch.cuda.synchronize()
    peer.engine.write(x, remote).wait(WAIT_S)
    slices, outgoing, incoming = own.take_trace(), own.take_copy_trace(), peer.ask("trace", False)
    peer.close()
    spans = {
        STAGES[0]: [[begun, ended, size] for _, _, size, begun, ended in outgoing],
        STAGES[1]: [[posted, ended, size] for _, _, _, _, size, posted, ended, _ in slices],
        STAGES[2]: [[begun, ended, size] for _, _, size, begun, ended in incoming],
    }
    first = min(span[0] for stage in spans.values() for span in stage)
    return {
        "device": torch.cuda.get_device_name(),
        "bytes": BYTES,
        "spans_ns": {
            name: [[a - first, b - first, size] for a, b, size in stage]
            for name, stage in spans.items()
        },
    }


def draw(found: dict[str, Any], target: Path) -> None:
    """One line for each slice in each stage, from the top down in the order of their begins."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4))
    at, middles = 0, []
    for number, name in enumerate(STAGES):
        spans = sorted(found["spans_ns"][name])
        for begun, ended, _ in spans:
            axes.barh(at, (ended - begun) / 1e6, left=begun / 1e6, color=f"C{number}", height=0.8)
            at += 1
        middles.append(at - len(spans) / 2 - 0.5)
        at += 2
    axes.set_yticks(middles, STAGES)
    axes.invert_yaxis()
    axes.set_xlabel("ms")
    axes.set_title(f"{found['bytes'] >> 20} MiB from GPU to GPU over TCP, {found['device']}")
    figure.tight_layout()
    figure.savefig(target)


def main() -> int:
    """Traces, or draws what was traced."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="the trace")
    parser.add_argument("--draw", type=Path, help="draw it instead of measuring")
    arguments = parser.parse_args()
    if arguments.draw:
        draw(json.loads(arguments.json.read_text()), arguments.draw)
        return 0
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU: nothing was traced.")
        return 3
    found = traced()
    arguments.json.write_text(json.dumps(found) + "\n")
    for name, spans in found["spans_ns"].items():
        busy = sum(ended - begun for begun, ended, _ in spans) / 1e6
        begun, ended = min(s[0] for s in spans) / 1e6, max(s[1] for s in spans) / 1e6
        print(f"{name:22} {len(spans):3}, from {begun:.2f} to {ended:.2f} ms, {busy:.2f} ms in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
