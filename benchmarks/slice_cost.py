"""Stage: benchmarks. Question: what does a slice on an RDMA rail cost beside the device's own work?

Compiles slice_cost.cpp with the transports, and the fake devices with queues that cost next to
nothing (tests/native/fake_lean.cpp), and runs it some times over. No devices are needed. Run alone:
`python benchmarks/slice_cost.py`.
"""

from __future__ import annotations

import json
import subprocess

import lineup
from compare import say
from results import Question

ROOT = lineup.ROOT
BUILD = ROOT / "build" / "slice_cost"
FLAGS = ("-std=c++20", "-O3", "-pthread", f"-I{ROOT}/csrc", f"-I{ROOT}/tests/native")
BURSTS = 20_000
# What each number may be, in ns.
TARGETS = {"frame_ns": 150.0, "read_ns": 150.0, "landed_ns": 100.0}
LABELS = {
    "frame_ns": "sender: the slice's frame posted",
    "read_ns": "receiver: the frame understood, its read posted",
    "landed_ns": "receiver: the finished read told as landed",
}


def build() -> list[str]:
    """The command that measures once."""
    BUILD.mkdir(parents=True, exist_ok=True)
    here, native = ROOT / "benchmarks", ROOT / "tests/native"
    program, library = BUILD / "slice_cost", BUILD / "liblean.so"
    fakes = [native / f"fake_{name}.cpp" for name in ("verbs", "memory", "fabric", "says", "lean")]
    core = [ROOT / f"csrc/core/{name}.cpp" for name in ("layout", "wire")]
    core += [ROOT / f"csrc/device/{name}.cpp" for name in ("arena", "copies", "rows", "rows_ptx")]
    folders = [ROOT / "csrc/transports", ROOT / "csrc/drivers"]
    real = sorted(path for folder in folders for path in folder.rglob("*.cpp"))
    say("compiling, a minute")
    for words in (
        ["-shared", "-fPIC", *fakes, "-o", library],
        [here / "slice_cost.cpp", *core, *real, "-ldl", "-o", program],
    ):
        subprocess.run(["g++", *FLAGS, *map(str, words)], check=True)
    return [str(program), str(library), str(BURSTS)]


def main() -> None:
    """Runs the question."""
    chosen = lineup.options(__doc__ or "", "none").parse_args()
    command = build()
    rounds = chosen.rounds or 9
    runs = [json.loads(subprocess.check_output(command)) for _ in range(rounds)]
    question = Question("slice-cost", "ns", [], {"torch_tent": "its sources"}, {})
    for name, label in LABELS.items():
        found = sorted(run[name] for run in runs)
        row = {
            "case": "a slice of 64 KiB",
            "column": label,
            "unit": "ns",
            "median": found[len(found) // 2],
            "low": found[0],
            "high": found[-1],
            "target": TARGETS[name],
            "allocations": max(run["allocations"] for run in runs),
            "bursts": BURSTS,
        }
        question.rows.append(row)
        print(
            f"  {label:<50} {row['median']:6.1f} ns [{row['low']:.1f} .. {row['high']:.1f}] "
            f"of {row['target']:.0f}, {row['allocations']} allocations"
        )
    question.save(chosen.json or str(ROOT / "benchmarks/results/slice-cost.json"), chosen.quick)


if __name__ == "__main__":
    main()
