"""Tests of torch_tent/settings.py: every bad value is named, and the secret is never shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torch_tent.errors import SettingsError, TentError
from torch_tent.settings import Settings


def read(**variables: str) -> Settings:
    return Settings.from_environment({f"TENT_{name.upper()}": v for name, v in variables.items()})


def test_no_variables_give_the_defaults() -> None:
    assert Settings.from_environment({"PATH": "/bin", "TENT_RAILS": ""}) == Settings()


def test_each_setting_is_read_from_its_name() -> None:
    found = read(
        peer_timeout_s="2.5",
        connect_timeout_s="1",
        slice_bytes_min="64KiB",
        slice_bytes_max="1 MiB",
        inline_bytes_max="0",
        overdue_min_s="0.1",
        checksum="on",
        transports="tcp,shm",
        rails="eth0, 10.0.0.0/8",
        rdma_devices="mlx5_0",
        rdma_idle_s="5",
        rdma_links_max="64",
        rdma_kept_bytes_max="2GiB",
        gpu_gather_bytes_max="8KiB",
        secret="abc",
        listen_port="4000",
        metrics_port="9000",
        trace="1",
    )
    wanted = Settings(
        peer_timeout_s=2.5,
        connect_timeout_s=1.0,
        slice_bytes_min=65536,
        slice_bytes_max=1 << 20,
        inline_bytes_max=0,
        overdue_min_s=0.1,
        checksum=True,
        transports=("tcp", "shm"),
        rails=("eth0", "10.0.0.0/8"),
        rdma_devices=("mlx5_0",),
        rdma_idle_s=5.0,
        rdma_links_max=64,
        rdma_kept_bytes_max=2 << 30,
        gpu_gather_bytes_max=8 << 10,
        secret=b"abc",
        listen_port=4000,
        metrics_port=9000,
        trace=True,
    )
    assert found == wanted
    assert len(dataclasses.fields(Settings)) == 18  # A new setting belongs into this test.


@pytest.mark.parametrize(
    ("variable", "value", "accepted"),
    [
        ("TENT_PEER_TIMEOUT_S", "soon", "seconds from 0.1"),
        ("TENT_PEER_TIMEOUT_S", "nan", "seconds from 0.1"),
        ("TENT_PEER_TIMEOUT_S", "-1", "seconds from 0.1"),
        ("TENT_SLICE_BYTES_MAX", "4 apples", "as in 65536, 64KiB"),
        ("TENT_SLICE_BYTES_MAX", "1GiB", "to 67108864"),
        ("TENT_CHECKSUM", "maybe", "true/false"),
        ("TENT_TRANSPORTS", "tcp,pigeon", "shm, cma, tcp"),
        ("TENT_RAILS", "eth0,,eth1", "interfaces, addresses or subnets"),
        ("TENT_RAILS", "eth0,eth0", "interfaces, addresses or subnets"),
        ("TENT_LISTEN_PORT", "70000", "a port from 1 to 65535"),
        ("TENT_METRICS_PORT", "0", "a port from 1 to 65535"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(
    variable: str, value: str, accepted: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environment({variable: value})
    message = str(caught.value)
    assert variable in message
    assert value in message
    assert accepted in message


@pytest.mark.parametrize(
    "values",
    [
        {"peer_timeout_s": "10"},
        {"peer_timeout_s": None},
        {"slice_bytes_max": 1.5},
        {"checksum": 1},
        {"transports": ()},
        {"transports": None},
        {"rails": ()},
        {"rails": ("eth0", "")},
        {"secret": b""},
        {"listen_port": None},
        {"slice_bytes_min": 1 << 20, "slice_bytes_max": 1 << 19},
    ],
)
def test_a_bad_value_in_code_is_refused_too(values: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(values))):
        Settings(**values)


def test_an_unknown_name_is_an_error_that_suggests_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"TENT_PEER_TIMOUT is set.*mean TENT_PEER_TIMEOUT_S"):
        Settings.from_environment({"TENT_PEER_TIMOUT": "3"})


def test_a_name_of_the_build_is_no_error() -> None:
    assert Settings.from_environment({"TENT_SANITIZE": "thread"}) == Settings()


def test_the_secret_is_never_shown() -> None:
    settings = read(secret="hunter2", rails="eth0")
    assert "hunter2" not in f"{settings!r} {settings}"
    with pytest.raises(SettingsError) as caught:
        Settings(secret=12345)  # type: ignore[arg-type]
    assert "12345" not in str(caught.value)


def test_the_secret_comes_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"  from a file\n")
    assert read(secret_file=str(path)).secret == b"from a file"
    with pytest.raises(SettingsError, match="both set"):
        read(secret_file=str(path), secret="another")
    path.write_bytes(b"\n")
    with pytest.raises(SettingsError, match="empty file"):
        read(secret_file=str(path))
    with pytest.raises(SettingsError, match=r"TENT_SECRET_FILE.*No such file"):
        read(secret_file=str(tmp_path / "missing"))


def test_settings_errors_are_tent_errors_and_value_errors() -> None:
    assert issubclass(SettingsError, TentError)
    assert issubclass(SettingsError, ValueError)


def test_lists_become_tuples_and_settings_can_be_keys() -> None:
    settings = Settings(rails=["eth0"], transports=["tcp"])  # type: ignore[arg-type]
    assert {settings: 1}[Settings(rails=("eth0",), transports=("tcp",))] == 1


def test_the_engine_gets_plain_numbers_only() -> None:
    given = Settings(secret=b"x", peer_timeout_s=3).for_engine()
    assert given["peer_timeout_s"] == 3.0
    assert {type(value) for value in given.values()} <= {int, float, bool}


@given(st.sampled_from(sorted(f.name for f in dataclasses.fields(Settings))), st.text(min_size=1))
def test_any_text_gives_settings_or_an_error_that_names_it(name: str, text: str) -> None:
    message = ""
    try:
        Settings.from_environment({f"TENT_{name.upper()}": text})
    except SettingsError as error:
        message = str(error)
    assert not message or name.upper() in message or "is above slice_bytes_max" in message
