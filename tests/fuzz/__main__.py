"""Stage: tests, fuzzing. `python -m tests.fuzz [--seconds 60]`: libFuzzer on the wire and on what
comes over a link, with the corpus of this folder, and at the same time tickets and handshakes.

Needs clang for the first two. The exit status is 1 when anything was found; what libFuzzer found
lies in build/fuzz. `--grow` adds what is new to the corpus, as little as covers the same.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz import targets, tickets

FOLDER = targets.ROOT / "build/fuzz"
INPUT_BYTES_MAX = 1500


def start(name: str, program: Path, found: str, seconds: int) -> subprocess.Popen[str]:
    """libFuzzer on one target; what is new goes to `found`."""
    (FOLDER / f"found-{name}").mkdir(exist_ok=True)
    limits = [f"-max_total_time={seconds}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=20"]
    places = [f"-artifact_prefix={FOLDER}/found-{name}/", found, str(targets.CORPUS / name)]
    command = [str(program), *limits, "-rss_limit_mb=2048", "-print_final_stats=1", *places]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Bytes that nobody meant.")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(30))
    parser.add_argument("--grow", action="store_true", help="add what is new to the corpus")
    chosen = parser.parse_args()
    print(f"seed {chosen.seed} (of tickets)")
    compiler = targets.clang()
    if compiler is None:
        print("there is no clang here: 'apt-get install clang' (Debian, Ubuntu)", file=sys.stderr)
        return 1
    programs = targets.build_fuzzers(compiler, FOLDER)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="tent-fuzz-") as folder:
        for name in programs:
            (Path(folder) / name).mkdir()
            (targets.CORPUS / name).mkdir(parents=True, exist_ok=True)
        runs = {
            name: start(name, program, f"{folder}/{name}", chosen.seconds)
            for name, program in programs.items()
        }
        answers = sum(1 for _ in tickets.fuzz(chosen.seconds, chosen.seed))
        print(f"tickets: {answers} kinds of answers, no other error")
        for name, run in runs.items():
            said, _ = run.communicate()
            done = [line for line in said.splitlines() if "number_of_executed_units" in line]
            print(f"{name}: {' '.join(done)} exit {run.returncode}")
            if run.returncode != 0:
                print(said)
                bad = 1
            elif chosen.grow:
                merge = [str(programs[name]), "-merge=1", str(targets.CORPUS / name)]
                subprocess.run([*merge, f"{folder}/{name}"], check=True, capture_output=True)
    return bad


if __name__ == "__main__":
    sys.exit(main())
