"""Stage: tests. What every test gets: a seed that is printed, and a look for what was left behind.

Runs in each process of pytest-xdist for itself, on the thread that runs the tests.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Kernels run in Triton's interpreter where there is no GPU. Triton reads this when it is imported,
# and whichever test file does that first, this file comes before it.
if not Path("/proc/driver/nvidia").exists():
    os.environ["TRITON_INTERPRET"] = "1"

MARK = "TEST_RUN_MARK"  # Inherited by every process that a test starts, however indirectly.
SHARED_MEMORY = Path("/dev/shm")
GRACE_S = 3.0

# Programs that a shell runs in its background ignore Ctrl-C, and so would the programs they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Speed differs tenfold between machines: the time limit is pytest's, not one for each example.
hypothesis.settings.register_profile("tent", deadline=None, print_blob=True)
hypothesis.settings.load_profile("tent")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="replay random tests with this seed")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A seed for the test's random choices: that of --seed, else a new one, shown on failure."""
    given = request.config.getoption("--seed")
    value = random.SystemRandom().getrandbits(32) if given is None else int(given)
    replay = f"python -m pytest '{request.node.nodeid}' --seed {value}"
    request.node.add_report_section("setup", "seed", f"{value}, replayed by: {replay}")
    return value


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """No process and no name in shared memory outlives the tests."""
    before = shared_names()
    os.environ[MARK] = f"{os.getpid()}-{secrets.token_hex(8)}"
    yield
    deadline = time.monotonic() + GRACE_S
    while True:
        processes = left_processes(os.environ[MARK])
        names = sorted(name for name in shared_names() - before if not used_by_others(name))
        if not (processes or names) or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    found = [f"process {pid}: {command}" for pid, command in processes.items()]
    found += [f"shared memory {SHARED_MEMORY / name}" for name in names]
    if found:
        pytest.fail("the tests left behind:\n" + "\n".join(found), pytrace=False)


def left_processes(mark: str) -> dict[int, str]:
    """Running processes that descend from this one's tests: pid and command line."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # It has ended, or is another user's.
        ours = parent == os.getpid()
        # The fork server and the resource tracker of multiprocessing end with this process.
        serves = ours and "from multiprocessing." in command and "spawn_main" not in command
        if pid != os.getpid() and not serves and (ours or f"{MARK}={mark}".encode() in environment):
            found[pid] = command or "(ended, but not waited for)"
    return found


def shared_names() -> set[str]:
    """This user's names in shared memory, sockets included."""
    found = set()
    for path in SHARED_MEMORY.rglob("*"):
        try:
            if path.lstat().st_uid == os.getuid():
                found.add(str(path.relative_to(SHARED_MEMORY)))
        except OSError:
            continue  # It has just been removed.
    return found


def used_by_others(name: str) -> bool:
    """Whether another living process has this name open: then it is not one that we left."""
    wanted = str(SHARED_MEMORY / name)
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int(folder.name) == os.getpid():
                continue
            if wanted in (folder / "maps").read_text():
                return True
            if any(os.readlink(link) == wanted for link in (folder / "fd").iterdir()):
                return True
        except OSError:
            continue
    return False
