"""Stage: benchmarks. How near to the GPU's own copy speed do pack and unpack come?

Run by itself or by gpu.sh, on a machine with a GPU: `python benchmarks/kernels.py [--out FILE]`.
What always holds: fresh random data, every result compared with the torch reference before it is
timed, ceilings measured in the same run with the same events, medians of many rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROUNDS = 15


@dataclass(frozen=True)
class Row:
    """One measured line: `bytes` were read and written together, in `seconds` (median)."""

    case: str
    bytes: int
    seconds: float
    least_seconds: float
    most_seconds: float
    against: str  # what the ratio compares with
    ratio: float  # of speeds: 1 is as fast
    target: float

    def text(self) -> str:
        verdict = "holds" if self.ratio >= self.target else "MISSED"
        return (
            f"{self.case:44} {self.bytes / self.seconds / 1e9:8.0f} GB/s   {self.ratio:6.3f} x "
            f"{self.against:24} target {self.target:4.2f}  {verdict}"
        )


def timed(action: Callable[[], object]) -> list[float]:
    """Seconds of each round, by events on the current stream."""
    for _ in range(3):
        action()
    marks = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(ROUNDS)
    ]
    for begin, end in marks:
        begin.record()
        action()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in marks]


def copy_ceiling(data_bytes: int) -> float:
    """Bytes read and written per second by the device's own contiguous copy."""
    source = torch.randint(0, 256, (data_bytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * data_bytes / statistics.median(timed(lambda: target.copy_(source)))


def cache(layers: int, blocks: int, block_bytes: int) -> list[torch.Tensor]:
    """bfloat16 layers [2, blocks, 16 tokens, heads, dim]: a part of a block has `block_bytes`."""
    heads, dim = (1, block_bytes // 32) if block_bytes < 8192 else (block_bytes // 4096, 128)
    shape = (2, blocks, 16, heads, dim)
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(layers)]


def measured(
    case: str, moved: int, action: Callable[[], object], against: str, other: float, target: float
) -> Row:
    """A row whose ratio is to `other`, in bytes per second."""
    rounds = timed(action)
    middle = statistics.median(rounds)
    return Row(
        case, moved, middle, min(rounds), max(rounds), against, moved / middle / other, target
    )


def blocks_of(block_bytes: int, data_bytes: int, ceiling: float, target: float) -> list[Row]:
    """pack and unpack of `data_bytes` in blocks of this size, half of a cache, in random order."""
    from triton_kernels import Paged, pack, pack_reference, unpack

    layers = 8
    chosen = data_bytes // (layers * 2 * block_bytes)
    tensors = cache(layers, 2 * chosen, block_bytes)
    paged = Paged.of(tensors, 1)
    order = torch.randperm(2 * chosen, device="cuda")[:chosen]
    packed = pack(paged, order)
    few = order[:64]
    if not torch.equal(pack(paged, few).data, pack_reference(paged, few).data):
        raise SystemExit(f"pack of blocks of {block_bytes} bytes differs from its reference")
    saved = [tensor.clone() for tensor in tensors]
    for tensor in tensors:
        tensor[:, order] = -1
    unpack(packed, paged, order)
    if not all(map(torch.equal, saved, tensors)):
        raise SystemExit(f"unpack of blocks of {block_bytes} bytes did not undo pack")
    del saved
    moved, name = 2 * packed.data.nbytes, f"{block_bytes >> 10} KiB blocks, bfloat16"
    return [
        measured(f"pack, {name}", moved, lambda: pack(paged, order), "copy", ceiling, target),
        measured(
            f"unpack, {name}",
            moved,
            lambda: unpack(packed, paged, order),
            "copy",
            ceiling,
            target,
        ),
    ]


def against_index_select() -> list[Row]:
    """64 layers x 256 blocks of 16 KiB against index_select and copy_ for each layer."""
    from triton_kernels import Paged, pack

    tensors = cache(64, 512, 16384)
    paged = Paged.of(tensors, 1)
    order = torch.randperm(512, device="cuda")[:256]
    out = torch.empty((64, 2, 256, *tensors[0].shape[2:]), device="cuda", dtype=torch.bfloat16)

    def by_layer() -> None:
        for number, layer in enumerate(tensors):
            out[number].copy_(layer.index_select(1, order))

    moved = 2 * out.nbytes
    other = moved / statistics.median(timed(by_layer))
    row = measured(
        "pack, 64 layers x 256 blocks of 16 KiB",
        moved,
        lambda: pack(paged, order),
        "index_select and copy_",
        other,
        3.0,
    )
    same = torch.equal(pack(paged, order).data.reshape(out.shape), out)
    if not same:
        raise SystemExit("pack and index_select differ")
    return [row]


def float8(data_bytes: int, ceiling: float) -> list[Row]:
    """float8 against the time that its own bytes (2 read, 1 written) would take to be copied."""
    from triton_kernels import Paged, pack, pack_reference

    layers, block_bytes = 8, 16384
    chosen = data_bytes // (layers * 2 * block_bytes)
    paged = Paged.of(cache(layers, 2 * chosen, block_bytes), 1)
    order = torch.randperm(2 * chosen, device="cuda")[:chosen]
    few = order[:64]
    mine = pack(paged, few, float8=True, checksum=True)
    wanted = pack_reference(paged, few, float8=True, checksum=True)
    if not torch.equal(mine.data.view(torch.uint8), wanted.data.view(torch.uint8)):
        raise SystemExit("float8 pack differs from its reference")
    moved = data_bytes + data_bytes // 2
    return [
        measured(
            f"pack to float8{name}, 16 KiB blocks",
            moved,
            lambda check=check: pack(paged, order, float8=True, checksum=check),
            "copy of its bytes",
            ceiling,
            0.85,
        )
        for check, name in ((False, ""), (True, " with checksums"))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the rows there, as JSON")
    parser.add_argument("--data-gib", type=float, default=2.0, help="data of a case (default: 2)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU is visible: these kernels are measured on one; nothing was run")
    data_bytes = int(options.data_gib * (1 << 30))
    ceiling = copy_ceiling(data_bytes)
    print(f"{torch.cuda.get_device_name()}: copy {ceiling / 1e9:.0f} GB/s, read and write together")
    rows = [
        *blocks_of(65536, data_bytes, ceiling, 0.92),
        *blocks_of(16384, data_bytes, ceiling, 0.92),
        *blocks_of(2048, data_bytes, ceiling, 0.75),
        *against_index_select(),
        *float8(data_bytes, ceiling),
    ]
    for row in rows:
        print(row.text())
    if options.out:
        found = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "copy_bytes_per_second": ceiling,
            "rows": [asdict(row) for row in rows],
        }
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
