"""Stage: tests. Fixtures of the tests on fake RDMA devices; a module names this file as its plugin.

What always holds: a fabric begins without queue pairs, and is whole again when its test ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_rdma import Fabric, pretend, whole_fabric
from tests.pairs import until
from tests.transport_links import Links


@pytest.fixture
def fabric() -> Iterator[Fabric]:
    """The devices, and what may be done to them."""
    with whole_fabric() as made:
        until(lambda: made.pairs == 0)  # of engines before
        yield made


@pytest.fixture
def links(fabric: Fabric) -> Iterator[Links]:
    """Two transports with a link between fake0 and fake1."""
    with Links("rdma") as made:
        yield made


@pytest.fixture
def rdma_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines take the devices for the host's."""
    pretend(monkeypatch)
