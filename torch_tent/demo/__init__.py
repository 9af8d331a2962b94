"""Stage: demo. `python -m torch_tent demo`: prefill in one process, decode in another, and rails
between them that break.

Called by torch_tent/__main__.py on the main thread. What always holds: the exit status is 0 only if
the two processes generated what one process generates that does both.
"""

from __future__ import annotations

import argparse
import importlib.util
import secrets
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

EXTRAS = ("transformers", "rich", "matplotlib")
RAILS_MAX = 8
FAULTS = ("cut", "slow", "drop", "none")
OWN_TEXT = Path(__file__).with_name("text.txt")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The demo's options."""
    parser.add_argument("--text", type=Path, help="the prompt: any file (default: one of our own)")
    parser.add_argument(
        "--rails", type=int, default=4, help=f"TCP rails, 1 to {RAILS_MAX} (default: 4)"
    )
    parser.add_argument(
        "--fault",
        choices=FAULTS,
        default="cut",
        help="what happens to a rail mid-way: a reset (and a second rail stays cut), 100 times "
        "slower, silent, or nothing (default: cut)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-out"),
        help="folder for the picture and the trace (default: demo-out)",
    )


def run(options: argparse.Namespace) -> int:
    """The demo. Returns the exit status: 0 only if the generated tokens and the caches are equal.

    Sets a handler for SIGTERM while it runs, so that its processes are ended then too.
    """
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        return complain(
            f"it needs {' and '.join(missing)}: run `pip install {' '.join(missing)}`, or "
            "`pip install torch_tent[demo]`"
        )
    if not 1 <= options.rails <= RAILS_MAX:
        return complain(f"--rails {options.rails} is not from 1 to {RAILS_MAX}")
    before = signal.signal(signal.SIGTERM, leave)
    try:
        return perform(options)
    except KeyboardInterrupt:
        return complain("interrupted; its processes have been ended")
    finally:
        signal.signal(signal.SIGTERM, before)


def perform(options: argparse.Namespace) -> int:
    """The run itself, now that everything it needs is installed."""
    from rich.console import Console

    from torch_tent.demo import faults, parent, report
    from torch_tent.demo.children import ChildFailure
    from torch_tent.demo.plan import Plan
    from torch_tent.demo.progress import Stage
    from torch_tent.demo.prompt import Shape, prompt_of

    shape = Shape()
    try:
        faults.planned(options.fault, options.rails)
        prompt = prompt_of(options.text or OWN_TEXT, shape)
        options.out.mkdir(parents=True, exist_ok=True)
        console = Console()
        plan = Plan(shape, prompt, options.rails, secrets.token_bytes(32))
        with Stage(console) as stage:
            story = parent.perform(plan, options.fault, stage)
        report.show(story, console, options.out)
    except (ValueError, OSError, ChildFailure) as error:
        return complain(str(error))
    good = story.verdict.tokens_equal and story.verdict.cache_equal
    return 0 if good else 1


def complain(why: str) -> int:
    """One line (or more, when a process tells more) about what went wrong."""
    print(f"demo: {why}", file=sys.stderr)
    return 1


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM leaves as an exception, so that every block on the way out is left properly."""
    raise SystemExit(128 + number)
