"""Stage: CLI. `python -m torch_tent COMMAND`: each command is a module, loaded when asked for.

Runs on the main thread. What always holds: a command's module has `add_arguments` and `run`, which
returns the exit status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

COMMANDS = {
    "doctor": "what this host offers, what is missing, and what to do",
    "demo": "prefill and decode in two processes over several rails, one of which breaks",
    "top": "the rates of all engines of this host, live",
}


def load(name: str) -> Any:
    """The module of a command."""
    if name == "doctor":
        from . import doctor

        return doctor
    if name == "top":
        from . import top

        return top
    from . import demo

    return demo


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m torch_tent")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if given[:1] == [name]:
            module = load(name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    options = parser.parse_args(given)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main())
