"""Tests of torch_tent_autoload: the backend is known wherever torch is, and costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest
from torch.distributed import Backend

import torch_tent_autoload

AFTER_IMPORT = """
import sys, torch
import torch.distributed as dist
config = dist.distributed_c10d.BackendConfig(dist.Backend("tent"))
print(sorted(config.device_backend_map), "torch_tent" in sys.modules)
"""


def test_the_name_is_known_after_import_torch_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", AFTER_IMPORT], capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("['cpu', 'cuda'] False\n", 0), done.stderr


def test_registering_again_changes_nothing() -> None:
    torch_tent_autoload.register()
    torch_tent_autoload.register_at_import()
    before = list(Backend.backend_list)
    torch_tent_autoload.register()
    torch_tent_autoload.register_at_import()
    assert Backend.backend_list == before
    assert Backend.backend_list.count("tent") == 1


def test_an_import_of_torch_never_fails_because_of_us(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("torch has changed")

    monkeypatch.setattr(torch_tent_autoload, "register", broken)
    monkeypatch.delattr(Backend, "_ensure_backend_registered", raising=False)
    torch_tent_autoload.register_at_import()
    assert "backend 'tent' is not registered: torch has changed" in caplog.text


def test_early_registration_leaves_newer_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Backend, "_ensure_backend_registered", None, raising=False)
    monkeypatch.setattr(torch_tent_autoload, "register", lambda: calls.append("register"))
    torch_tent_autoload.register_at_import()
    assert calls == []
    monkeypatch.delattr(Backend, "_ensure_backend_registered")
    torch_tent_autoload.register_at_import()
    assert calls == ["register"]
