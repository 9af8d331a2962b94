"""Stage: tests. `python -m tests.rdma_vm VERB`: the tests that need RDMA devices, on any machine.

    prepare             fetches and makes what is needed, once
    test -- [WORD...]   runs tests/rdma there, or the files of it that the words name; words are
                        pytest's (make test-rdma)
    run -- COMMAND...   runs a command there, with two rails or as many as --rails says

Runs on the main thread. What always holds: status 3 means that nothing was run, and why is said;
124 and 125 that the machine did not end, or died; else it is the command's own.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from pathlib import Path

from . import image, machine, packages

NOT_RUN = 3
# Emulation is about 12 times slower than the processor: what is not needed there is left out.
PYTEST = [
    sys.executable,
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:xdist",
    "-p",
    "no:anyio",
]
PYTEST += ["--timeout", "240", "--durations", "8"]
TESTS = "tests/rdma"


def main(arguments: list[str]) -> int:
    """Does what one command line says; returns its exit status."""
    options = _parse(arguments)
    began = time.monotonic()
    try:
        packages.require()
        ready = image.prepared()
    except packages.NotPossibleError as error:
        print(f"rdma_vm: THE RDMA TESTS DID NOT RUN: {error}", file=sys.stderr)
        return NOT_RUN
    if options.verb == "prepare":
        print(f"rdma_vm: {ready.kernel.parent}, {time.monotonic() - began:.1f} s")
        return 0
    command = _pytest(options.words) if options.verb == "test" else options.words
    ended = machine.run(
        ready,
        machine.Run(
            tuple(command),
            rails=options.rails,
            writable=tuple(options.write),
            environment=tuple(options.env),
            timeout_s=options.timeout,
            counted=options.clock == "counted",
        ),
    )
    print(
        f"rdma_vm: booted in {ended.boot_s:.1f} s, ran {ended.command_s:.1f} s, "
        f"{time.monotonic() - began:.1f} s in all, status {ended.status}",
        file=sys.stderr,
    )
    return ended.status


def _pytest(words: list[str]) -> list[str]:
    named = any(word.startswith(TESTS) for word in words)
    return [*PYTEST, *words] if named else [*PYTEST, TESTS, *words]


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.rdma_vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("prepare", "test", "run"))
    parser.add_argument("--rails", type=int, default=2, help="pairs of ports")
    clock = "of an emulated processor: counted by its instructions, or this machine's"
    parser.add_argument("--clock", choices=("counted", "real"), default="counted", help=clock)
    parser.add_argument("--timeout", type=float, default=1200.0, metavar="S")
    parser.add_argument("--write", type=_folder, action="append", default=[], metavar="FOLDER")
    parser.add_argument("--env", type=_variable, action="append", default=[], metavar="NAME=TEXT")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:end])
    options.words = arguments[end + 1 :]
    if options.verb == "run" and not options.words:
        parser.error("run needs a command: run [--rails N] -- COMMAND...")
    return options


def _folder(text: str) -> Path:
    path = Path(text).resolve()
    if not path.is_dir() or re.search(r"[\s,]", str(path)):
        raise argparse.ArgumentTypeError(f"{text} is no folder, or its name has spaces or commas")
    return path


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise argparse.ArgumentTypeError(f"{text} is not NAME=TEXT")
    return name, value


if __name__ == "__main__":
    # Ended from outside, it still ends the guest and takes its folder away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main(sys.argv[1:]))
