"""Stage: tests, in the virtual machine. Skips these tests elsewhere; puts the wires right again."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.rdma import wires

INSIDE = "RDMA_VM_RAILS" in os.environ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not INSIDE:
        away = pytest.mark.skip(reason="needs RDMA devices: make test-rdma brings them")
        for item in items:
            if item.nodeid.startswith("tests/rdma/"):
                item.add_marker(away)


@pytest.fixture(autouse=True)
def healed() -> Iterator[None]:
    """Whatever a test does to the wires ends with it."""
    yield
    if INSIDE:
        wires.heal_all()
