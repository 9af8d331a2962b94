"""Stage: api. All settings of an engine, in one frozen value; the only file that reads TENT_*.

Made by whoever makes an engine, on any thread; read once, passed down by constructor. What always
holds: a Settings object that exists is valid, and its text never shows the secret.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import SettingsError

TRANSPORTS = ("shm", "cma", "tcp", "rdma", "cuda_ipc")
BUILD_NAMES = frozenset({"TENT_SANITIZE"})  # Read by setup.py, often still exported at run time.
_UNITS = {"": 1, "k": 10, "m": 20, "g": 30}


@dataclass(frozen=True)
class Rule:
    """What one setting accepts: how text becomes a value, which values are good, and in words."""

    parse: Callable[[str], Any]
    good: Callable[[Any], bool]
    accepts: str


def _seconds(low: float, high: float) -> Any:
    def good(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return {"rule": Rule(float, good, f"seconds from {low:g} to {high:g}, as in 0.25")}


def _bytes(low: int, high: int) -> Any:
    def good(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    accepts = f"whole bytes from {low} to {high}, as in 65536, 64KiB or 1MiB"
    return {"rule": Rule(_parse_bytes, good, accepts)}


def _parse_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+) ?(?:([kmg])(?:i?b)?|b)?", text.strip().lower())
    if match is None:
        raise ValueError(text)
    unit = match.group(2) or ""
    return int(match.group(1)) * (1 if not unit else 1 << _UNITS[unit])


def _number(low: int, high: int, accepts: str) -> Any:
    def good(value: Any) -> bool:
        return value is None or (type(value) is int and low <= value <= high)

    return {"rule": Rule(int, good, accepts)}


def _parse_switch(text: str) -> bool:
    return {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}[
        text.strip().lower()
    ]


_SWITCH = {"rule": Rule(_parse_switch, lambda v: type(v) is bool, "1 or 0 (true/false, on/off)")}


def _parse_names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def _names(accepts: str, known: tuple[str, ...] | None = None) -> Any:
    def good(value: Any) -> bool:
        if value is None:
            return known is None
        return (
            isinstance(value, tuple)
            and len(value) > 0
            and all(isinstance(name, str) and name for name in value)
            and len(set(value)) == len(value)
            and (known is None or set(value) <= set(known))
        )

    return {"rule": Rule(_parse_names, good, accepts)}


def _good_secret(value: Any) -> bool:
    return value is None or (isinstance(value, bytes) and len(value) > 0)


_SECRET = {"rule": Rule(str.encode, _good_secret, "a text that is not empty")}


@dataclass(frozen=True)
class Settings:
    """What an engine can be told. Times are seconds, sizes bytes.

    Raises SettingsError for a value that cannot be used, naming it and what is accepted.
    """

    # A peer that nothing is heard from is lost after this.
    peer_timeout_s: float = dataclasses.field(default=10.0, metadata=_seconds(0.1, 86400))
    # One try to connect on one rail.
    connect_timeout_s: float = dataclasses.field(default=0.25, metadata=_seconds(0.01, 60))
    # A slice is one frame: kBodyBytesMax in csrc/core/wire.h bounds it.
    slice_bytes_min: int = dataclasses.field(default=16 << 10, metadata=_bytes(4096, 64 << 20))
    slice_bytes_max: int = dataclasses.field(default=4 << 20, metadata=_bytes(4096, 64 << 20))
    # Payloads up to this ride inside a control message.
    inline_bytes_max: int = dataclasses.field(default=8 << 10, metadata=_bytes(0, 256 << 10))
    # A slice is never called overdue, and its rail never suspected, before this.
    overdue_min_s: float = dataclasses.field(default=0.02, metadata=_seconds(0.001, 60))
    # CRC32C of every slice.
    checksum: bool = dataclasses.field(default=False, metadata=_SWITCH)
    transports: tuple[str, ...] = dataclasses.field(
        default=TRANSPORTS,
        metadata=_names(
            "one or more of shm, cma, tcp, rdma, cuda_ipc, separated by commas", TRANSPORTS
        ),
    )
    # Interfaces, addresses or subnets whose addresses become TCP rails; None: all usable ones.
    rails: tuple[str, ...] | None = dataclasses.field(
        default=None,
        metadata=_names(
            "interfaces, addresses or subnets, separated by commas, as in eth0,10.0.1.5,10.1.0.0/16"
        ),
    )
    # RDMA ports that become rails, as torch_tent/rdma_choice.py reads them; None: all usable ones.
    rdma_devices: tuple[str, ...] | None = dataclasses.field(
        default=None,
        metadata=_names(
            "RDMA devices or ports, separated by commas, as in mlx5_0,mlx5_1:2, or ^mlx5_2 to "
            "leave one out"
        ),
    )
    # An RDMA link that carried nothing for so long is closed, and made again when it is wanted.
    rdma_idle_s: float = dataclasses.field(default=30.0, metadata=_seconds(0.1, 86400))
    # Links on one RDMA device; it may have fewer to give.
    rdma_links_max: int = dataclasses.field(
        default=4096, metadata=_number(1, 65535, "a number from 1 to 65535")
    )
    # Of memory that no transfer uses, so much may stay registered for RDMA; 0: none.
    rdma_kept_bytes_max: int = dataclasses.field(default=1 << 30, metadata=_bytes(0, 1 << 50))
    # Scattered pieces of a GPU's memory that are smaller on average are moved by a kernel, larger
    # ones by a copy each; 0: all of them. On an H100 a kernel was as quick up to 1 MiB.
    gpu_gather_bytes_max: int = dataclasses.field(default=1 << 20, metadata=_bytes(0, 64 << 20))
    # Whoever knows it may connect. None: loopback and Unix sockets of the same user only.
    secret: bytes | None = dataclasses.field(default=None, repr=False, metadata=_SECRET)
    listen_port: int = dataclasses.field(
        default=0, metadata=_number(0, 65535, "a port from 1 to 65535, or 0 for any free one")
    )
    # Where Prometheus may fetch the counters of all engines of this host; None: nowhere.
    metrics_port: int | None = dataclasses.field(
        default=None, metadata=_number(1, 65535, "a port from 1 to 65535")
    )
    # Keep a record of every slice.
    trace: bool = dataclasses.field(default=False, metadata=_SWITCH)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
            if field.name == "secret" and isinstance(value, str):
                value = value.encode()
            object.__setattr__(self, field.name, value)
            if not field.metadata["rule"].good(value) or (
                value is None and field.default is not None
            ):
                raise SettingsError(_complaint(field.name, field, value))
        if self.slice_bytes_min > self.slice_bytes_max:
            raise SettingsError(
                f"slice_bytes_min ({self.slice_bytes_min}) is above slice_bytes_max "
                f"({self.slice_bytes_max}): lower the one or raise the other"
            )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """The settings that TENT_* variables give; the rest keep their defaults.

        Each setting has a variable of its name (`peer_timeout_s`: TENT_PEER_TIMEOUT_S);
        TENT_SECRET_FILE names a file that holds the secret. An empty variable counts as unset.
        Raises SettingsError for a bad value, and for a TENT_* name that does not exist.
        """
        given = os.environ if environment is None else environment
        found = {name: text for name, text in given.items() if name.startswith("TENT_") and text}
        fields = {f"TENT_{field.name.upper()}": field for field in dataclasses.fields(cls)}
        _reject_unknown(found, [*fields, "TENT_SECRET_FILE"])
        values: dict[str, Any] = {}
        for variable, field in fields.items():
            if variable in found:
                values[field.name] = _parse(variable, field, found[variable])
        if "TENT_SECRET_FILE" in found:
            if "TENT_SECRET" in found:
                raise SettingsError(
                    "TENT_SECRET and TENT_SECRET_FILE are both set: unset one of them"
                )
            values["secret"] = _read_secret(found["TENT_SECRET_FILE"])
        return cls(**values)

    def for_engine(self) -> dict[str, float | int | bool]:
        """What the data plane is told: the names of CoreSettings in csrc/core/settings.h, times
        in seconds with `_s` behind."""
        return {
            "peer_timeout_s": float(self.peer_timeout_s),
            "slice_bytes_min": self.slice_bytes_min,
            "slice_bytes_max": self.slice_bytes_max,
            "inline_bytes_max": self.inline_bytes_max,
            "overdue_min_s": float(self.overdue_min_s),
            "checksum": self.checksum,
            "rest_after_s": float(self.rdma_idle_s),
            "rdma_links_max": self.rdma_links_max,
            "rdma_kept_bytes_max": self.rdma_kept_bytes_max,
            "gpu_gather_bytes_max": self.gpu_gather_bytes_max,
        }


def _complaint(name: str, field: dataclasses.Field[Any], value: object) -> str:
    shown = "(hidden)" if field.name == "secret" else repr(value)
    return f"{name} = {shown} cannot be used: it accepts {field.metadata['rule'].accepts}"


def _parse(variable: str, field: dataclasses.Field[Any], text: str) -> Any:
    rule: Rule = field.metadata["rule"]
    try:
        value = rule.parse(text)
    except (ValueError, KeyError):
        raise SettingsError(_complaint(variable, field, text)) from None
    if not rule.good(value):
        raise SettingsError(_complaint(variable, field, text))
    return value


def _reject_unknown(found: Mapping[str, str], known: list[str]) -> None:
    for variable in sorted(found):
        if variable in known or variable in BUILD_NAMES:
            continue
        near = difflib.get_close_matches(variable, known, n=1, cutoff=0.0)[0]
        raise SettingsError(
            f"{variable} is set, but there is no such setting: did you mean {near}? "
            f"The settings are {', '.join(sorted(known))}"
        )


def _read_secret(path: str) -> bytes:
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            f"TENT_SECRET_FILE = {path!r} cannot be read: {error.strerror}; it accepts the path "
            "of a file that this user can read"
        ) from None
    if not secret:
        raise SettingsError(f"TENT_SECRET_FILE = {path!r} names an empty file: put a secret in it")
    return secret
