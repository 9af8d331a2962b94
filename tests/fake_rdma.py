"""Stage: tests. RDMA without devices: the fake libibverbs, what a test may do to its fabric, and
engines that take its devices for the host's.

What always holds: a fabric is whole again when its block ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract_module import fake_verbs
from torch_tent import rendezvous
from torch_tent.rdma_ports import ACTIVE, ADAPTER, ETHERNET, Gid, RdmaPort
from torch_tent.settings import Settings

DEVICES = 4


class Fabric:
    """The devices fake0 to fake3, each with one port, which all reach each other."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(fake_verbs())
        for name in ("regions", "registrations", "messages", "reads", "pairs"):
            getattr(self.library, f"fake_{name}").restype = ctypes.c_uint64

    def rate(self, device: int, bytes_per_s: float, latency_s: float = 0.0) -> None:
        """How fast a device carries what is posted to it; 0: at once."""
        self.library.fake_rate(device, ctypes.c_double(bytes_per_s), ctypes.c_double(latency_s))

    def cut(self, device: int, cut: bool = True) -> None:
        """Silent loss: nothing passes, and nobody is told."""
        self.library.fake_cut(device, int(cut))

    def port(self, device: int, up: bool) -> None:
        """The port goes down or up, and the device tells of it."""
        self.library.fake_port(device, int(up))

    def fatal(self, device: int) -> None:
        self.library.fake_fatal(device)

    def fail_next(self, device: int, status: int) -> None:
        """The next piece of work completes with this status."""
        self.library.fake_fail_next(device, status)

    def refuse(self, device: int, error: int, above: int = 0) -> None:
        """Registrations of more than `above` bytes fail with this errno."""
        self.library.fake_refuse(device, error, ctypes.c_uint64(above))

    def room(self, device: int, nbytes: int) -> None:
        """Only so much more can be registered, as where memlock is small."""
        self.library.fake_room(device, ctypes.c_uint64(nbytes))

    def gate(self, device: int, seconds: float, passing: int = 0) -> None:
        """Each registration waits so long, but for the next few, which pass; 0: none waits."""
        self.library.fake_gate(device, ctypes.c_double(seconds), passing)

    def waiting(self, device: int) -> int:
        """Registrations that wait there."""
        return int(self.library.fake_waiting(device))

    def lingers(self, device: int) -> None:
        """A read that is under way when its queue pair is stopped lands just before its flush."""
        self.library.fake_lingers(device, 1)

    def hold(self, device: int, hold: bool) -> None:
        """Completions are held back, or told now."""
        self.library.fake_hold(device, int(hold))

    def retry(self, seconds: float) -> None:
        """How long a device tries before it calls the peer dead."""
        self.library.fake_retry(ctypes.c_double(seconds))

    @property
    def regions(self) -> int:
        """Registrations that exist."""
        return int(self.library.fake_regions())

    @property
    def registrations(self) -> int:
        """Registrations that were ever made."""
        return int(self.library.fake_registrations())

    @property
    def pairs(self) -> int:
        """Queue pairs that exist."""
        return int(self.library.fake_pairs())


def refuse_opening(fabric: Fabric, device: int, error: int) -> None:
    """Opening the device fails with this errno."""
    fabric.library.fake_open(device, error)


def hold_joins(fabric: Fabric, device: int, hold: bool) -> None:
    """Queue pairs that are to be joined wait, as where nobody on the network answers for an
    address, or go on now."""
    fabric.library.fake_join_gate(device, int(hold))


def set_mtu(fabric: Fabric, device: int, mtu: int) -> None:
    """The largest packets of the port, as the verbs number them: 3 is 1024, 5 is 4096."""
    fabric.library.fake_mtu(device, ctypes.c_uint(mtu))


def lose_above(fabric: Fabric, device: int, nbytes: int) -> None:
    """Larger messages and reads get lost, as where a switch has a smaller MTU."""
    fabric.library.fake_carried_max(device, ctypes.c_uint64(nbytes))


def tell_late(fabric: Fabric, device: int, seconds: float, seed: int) -> None:
    """Completions are told up to so much later, those of different queue pairs in any order."""
    fabric.library.fake_late(device, ctypes.c_double(seconds), ctypes.c_uint(seed & 0xFFFFFFFF))


def misses_gpus(fabric: Fabric, device: int) -> None:
    """A GPU's memory can be registered with the device, but no byte of it is reached."""
    fabric.library.fake_misses_gpus(device, 1)


def load_peer_memory(fabric: Fabric, translate: int) -> None:
    """As nvidia-peermem does, a GPU's addresses can be registered as they are. `translate`: the
    function of the fake GPUs that says where their bytes are."""
    fabric.library.fake_peer_memory(ctypes.c_uint64(translate))


def posted(fabric: Fabric) -> tuple[int, int]:
    """Messages and RDMA reads that were ever posted."""
    return int(fabric.library.fake_messages()), int(fabric.library.fake_reads())


@contextlib.contextmanager
def whole_fabric() -> Iterator[Fabric]:
    fabric = Fabric()
    fabric.library.fake_reset()
    try:
        yield fabric
    finally:
        fabric.library.fake_reset()


def port(device: int) -> RdmaPort:
    """A device's port as sysfs would show it."""
    raw = ipaddress.IPv6Address(f"::ffff:10.99.{device}.1")
    gid = Gid(0, raw, "RoCE v2", "")
    name = f"fake{device}"
    facts = (100_000, 0, 4096, -1, (), f"uverbs{device}", (gid,))
    return RdmaPort(name, ADAPTER, 1, ACTIVE, ETHERNET, *facts)


def pretend(patch: pytest.MonkeyPatch) -> None:
    """Engines that are made from now on find the fake devices on this host."""
    for_engine = Settings.for_engine

    def with_library(settings: Settings) -> dict[str, Any]:
        return {**for_engine(settings), "rdma_library": fake_verbs()}

    patch.setattr(Settings, "for_engine", with_library)
    patch.setattr(rendezvous, "rdma_ports", lambda: [port(device) for device in range(DEVICES)])
