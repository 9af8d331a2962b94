"""Stage: tests. PyTorch's suite for process-group backends, made to run on "tent".

Imported by the runner (__main__.py) and by the processes that the suite starts, in which the tests
run; all learn the backend and the Suite from the environment (BACKEND, WORLD_SIZE, LIKE).

The suite lies in torch's wheel; none of its assertions is changed. It skips by the backend's name,
and knows only those of torch, so a case that is meant for every CPU backend is skipped on any other
one. Hence the only shim: inside the suite, the backend's name compares equal to "gloo" (or "mpi",
for the cases of all_to_all), so that what runs on those runs on tent, and the suite's lists of what
is supported contain it. The groups are made with the backend itself.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import tempfile
import unittest
from types import ModuleType
from typing import Any

import torch_tent_autoload

SUITE = "torch.testing._internal.distributed.distributed_test"
LISTS = (
    "PROFILING_SUPPORTED_BACKENDS",
    "CUDA_PROFILING_SUPPORTED_BACKENDS",
    "SEND_RECV_PROFILING_SUPPORTED_BACKENDS",
)


class AlsoNamed(str):
    """A backend's name that the suite's conditions take for that of another one, too."""

    like = "gloo"

    def __eq__(self, other: object) -> bool:
        return str(self) == other or other == self.like

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self.like)

    def __str__(self) -> str:
        return str.__str__(self)


def load_suite() -> ModuleType:
    """The suite's module, for the backend that the environment names."""
    backend = os.environ.setdefault("BACKEND", "tent")
    os.environ.setdefault("WORLD_SIZE", "3")
    os.environ.setdefault("TEMP_DIR", tempfile.mkdtemp(prefix="tent-conformance-"))
    AlsoNamed.like = os.environ.setdefault("LIKE", "gloo")
    # How a backend that is not torch's own announces itself to the suite.
    common = importlib.import_module("torch.testing._internal.common_distributed")
    common.DistTestCases.backend_feature["plugin"].add("tent")
    # The suite compares the variable while it is imported: its value is what must be replaced.
    environment: Any = os.environ
    decode = environment.decodevalue
    environment.decodevalue = lambda raw: (
        AlsoNamed(backend) if raw == backend.encode() else decode(raw)
    )
    try:
        suite = importlib.import_module(SUITE)
    finally:
        environment.decodevalue = decode
    for name in LISTS:
        getattr(suite, name).append("tent")
    return suite


torch_tent_autoload.register()
suite = load_suite()


class TestBackend(suite.TestDistBackend, suite.DistributedTest._DistTestBase):
    """The suite's tests. Each runs in processes of its own, forked from one that has imported all
    this, so that they start in milliseconds instead of many seconds."""

    def setUp(self) -> None:
        super().setUp()
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])

        def process(target: Any, name: str, args: Any, kwargs: Any) -> Any:
            given = (dict(os.environ), target, args, kwargs)
            return context.Process(target=in_environment, name=name, args=given)

        self._start_processes(process)


def in_environment(environment: dict[str, str], target: Any, args: Any, kwargs: Any) -> None:
    """Runs a rank with the environment that the test has made."""
    os.environ.update(environment)
    target(*args, **kwargs)


def cases_of_groups() -> unittest.TestSuite:
    """The cases that run on a backend."""
    return unittest.defaultTestLoader.loadTestsFromTestCase(TestBackend)


def cases_without_group() -> unittest.TestSuite:
    """The file's other cases: they ask no backend anything."""
    kinds = [value for value in vars(suite).values() if is_plain_case(value)]
    loader = unittest.defaultTestLoader
    return unittest.TestSuite(map(loader.loadTestsFromTestCase, kinds))


def is_plain_case(value: object) -> bool:
    return (
        isinstance(value, type)
        and issubclass(value, unittest.TestCase)
        and value.__module__ == SUITE
        and not issubclass(value, suite.TestDistBackend)
    )
