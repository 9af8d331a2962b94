"""Stage: tests, in the virtual machine. What happens to a rail: cut, lost packets, less speed.

Rail N is the veth pair railNa and railNb; each end has its verbs device rxeNa and rxeNb. Packets
leave through the end's own interface, so what is done to railNa hits what rxeNa sends. What always
holds: `heal_all` undoes everything, and returns when the ports are active again.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1  # <linux/sockios.h>, <net/if.h>
RAILS = int(os.environ.get("RDMA_VM_RAILS", "0"))
ENDS = [f"rail{number}{side}" for number in range(RAILS) for side in "ab"]
HEAL_S = 10.0


_touched: set[str] = set()


def cut(end: str) -> None:
    """The interface goes down, and with it the carrier of the other end."""
    _touched.add(end)
    _set_up(end, False)


def disturb(end: str, *netem: str) -> None:
    """What the end sends is lost, delayed or reordered: netem's words, as in "loss 100%"."""
    _touched.add(end)
    _run("tc", "qdisc", "replace", "dev", end, "root", "netem", *netem)


def silence(rail: int) -> None:
    """The rail stays up, and nothing comes out of it at either end."""
    for end in (f"rail{rail}a", f"rail{rail}b"):
        disturb(end, "loss", "100%")


# What makes rail 1 useless, by name.
FAULTS: dict[str, Callable[[], None]] = {
    "cut here": lambda: cut("rail1a"),
    "cut at the far end": lambda: cut("rail1b"),
    "silent loss": lambda: silence(1),
}


def forget_neighbours(end: str) -> None:
    """The link addresses of all that the end has talked to, as after a cut."""
    _run("ip", "neigh", "flush", "dev", end)


def shape(end: str, rate: str) -> None:
    """What the end sends is held to a rate, as in "10mbit"."""
    _touched.add(end)
    words = ("rate", rate, "burst", "32kb", "latency", "400ms")
    _run("tc", "qdisc", "replace", "dev", end, "root", "tbf", *words)


def heal(end: str) -> None:
    """Ends what was done to one end."""
    subprocess.run(["tc", "qdisc", "del", "dev", end, "root"], capture_output=True)
    _set_up(end, True)


def heal_all() -> None:
    """Ends what was done to any, and waits until every port is active."""
    for end in sorted(_touched):
        heal(end)
    _touched.clear()
    deadline = time.monotonic() + HEAL_S
    while not all(active(end) for end in ENDS):
        assert time.monotonic() < deadline, "a port did not come back"
        time.sleep(0.02)


def active(end: str) -> bool:
    """Whether the verbs device of an end says that its port is active."""
    device = end.replace("rail", "rxe")
    state = Path(f"/sys/class/infiniband/{device}/ports/1/state").read_text()
    return state.strip().endswith(": ACTIVE")


def sent_bytes(end: str) -> int:
    """What has left through an end."""
    return int(Path(f"/sys/class/net/{end}/statistics/tx_bytes").read_text())


def _set_up(end: str, up: bool) -> None:
    """By a call to the kernel: where a processor is emulated, a program takes long to start."""
    request = bytearray(struct.pack("16sH14x", end.encode(), 0))
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCGIFFLAGS, request)
        [flags] = struct.unpack_from("H", request, 16)
        struct.pack_into("H", request, 16, flags | IFF_UP if up else flags & ~IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, bytes(request))


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr.strip()}"
