"""An import of torch_tent takes no time, makes no thread, opens no device, reads no variable."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

import pytest

EXTRA_S = 0.030  # processor time beyond `import torch`
LOOK = """
import json, os, sys, time
import torch

class Watched(dict):
    def note(self, name): read.append(name)
    def __getitem__(self, name): self.note(name); return dict.__getitem__(self, name)
    def get(self, name, default=None): self.note(name); return dict.get(self, name, default)
    def __contains__(self, name): self.note(name); return dict.__contains__(self, name)
    def __iter__(self): self.note("all"); return dict.__iter__(self)
    def keys(self): self.note("all"); return dict.keys(self)
    def items(self): self.note("all"); return dict.items(self)

opened, read = [], []
sys.addaudithook(lambda event, facts: opened.append(str(facts[0])) if event == "open" else None)
threads, files = os.listdir("/proc/self/task"), os.listdir("/proc/self/fd")
os.environ = Watched(os.environ)
os.getenv = os.environ.get
opened.clear()
began = time.process_time()
import torch_tent
seconds = time.process_time() - began
found = list(read), list(opened)
print(json.dumps({
    "seconds": seconds,
    "read": found[0],
    "devices": [path for path in found[1] if path.startswith(("/dev", "/sys", "/proc"))],
    "threads": len(os.listdir("/proc/self/task")) - len(threads),
    "files": len(os.listdir("/proc/self/fd")) - len(files),
    "native": sorted(name for name in sys.modules if name.startswith("torch_tent._")),
}))
"""


@pytest.fixture(scope="module")
def looks() -> list[dict[str, object]]:
    """What five new interpreters saw of the import."""
    command = [sys.executable, "-c", LOOK]
    return [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]


@pytest.mark.timeout(300)
def test_it_takes_no_time(looks: list[dict[str, float]]) -> None:
    assert statistics.median(look["seconds"] for look in looks) <= EXTRA_S


@pytest.mark.timeout(300)
def test_it_makes_no_thread_and_loads_no_native_code(looks: list[dict[str, object]]) -> None:
    assert [(look["threads"], look["native"]) for look in looks] == [(0, [])] * len(looks)


@pytest.mark.timeout(300)
def test_it_opens_no_device_and_keeps_no_file(looks: list[dict[str, object]]) -> None:
    assert [(look["devices"], look["files"]) for look in looks] == [([], 0)] * len(looks)


@pytest.mark.timeout(300)
def test_it_reads_no_environment(looks: list[dict[str, object]]) -> None:
    assert [look["read"] for look in looks] == [[]] * len(looks)
