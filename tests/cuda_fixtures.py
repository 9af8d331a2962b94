"""Stage: tests. Fixtures of the tests on fake GPUs; a module names this file as its plugin.

What always holds: a test begins with GPUs that are quick and reach each other, and ends when they
have nothing more to do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fake_cuda import Fake, use


@pytest.fixture
def fake() -> Iterator[Fake]:
    """The fake driver of this process."""
    found = use()
    found.model()
    yield found
    found.idle()
    found.model()
    found.c.peers(True)
    found.c.spoil(False)
    assert not found.c.poisoned()
