"""Stage: control. An engine's contact card: who it is, where it runs, and every way to reach it.

Made once per engine by the control plane; travels inside tickets, handshakes and the c10d store.
A value: any thread. What always holds: a Card that exists has addresses that parse.
"""

from __future__ import annotations

import ipaddress

import msgspec

from . import envelope

INCARNATION_BYTES = 16
ADDRESSES_MAX = 32  # A card must fit into a handshake message.
PORTS_MAX = 16
PORT_NAME_MAX = 70
NAME_BYTES_MAX = 200
INTERFACE_BYTES_MAX = 16
SPEED_MBIT_MAX = 1 << 40


class Host(msgspec.Struct, frozen=True, array_like=True):
    """Which kernel and namespaces a process runs in: equal parts mean shared things."""

    boot_id: str
    network: int  # inode of the network namespace: the same loopback, the same Unix sockets
    processes: int  # inode of the pid namespace: the same process ids

    def __post_init__(self) -> None:
        _check(len(self.boot_id) <= 64, "the boot id is too long")

    def same_network(self, other: Host) -> bool:
        """Whether loopback and abstract Unix sockets reach from one to the other."""
        return self.boot_id == other.boot_id and self.network == other.network


class Address(msgspec.Struct, frozen=True, array_like=True):
    """One address that an engine listens on."""

    host: str  # IPv4 or IPv6, never a name; no scope
    port: int
    interface: str
    prefix: int  # length of its subnet's prefix
    speed_mbit: int  # 0: unknown
    rail: int = 0  # its rail's place in the list; addresses of one rail are alternatives

    def __post_init__(self) -> None:
        address = ipaddress.ip_address(self.host)
        _check("%" not in self.host, f"address {self.host} has a scope")
        _check(1 <= self.port <= 65535, f"port {self.port} is none")
        _check(0 <= self.prefix <= address.max_prefixlen, f"prefix /{self.prefix} is none")
        _check(len(self.interface.encode()) <= INTERFACE_BYTES_MAX, "interface name too long")
        _check(0 <= self.speed_mbit <= SPEED_MBIT_MAX, f"speed {self.speed_mbit} is none")
        _check(0 <= self.rail < ADDRESSES_MAX, f"rail {self.rail} is none")


class CardPort(msgspec.Struct, frozen=True, array_like=True):
    """One RDMA port on which rails may end."""

    name: str  # as in "mlx5_0/1"
    link_layer: str
    address: str  # its GID, IPv4 as such
    prefix: int
    rate_mbit: int

    def __post_init__(self) -> None:
        address = ipaddress.ip_address(self.address)
        _check(0 < len(self.name) <= PORT_NAME_MAX, "the RDMA port's name is too long")
        _check(self.name.isprintable() and len(self.link_layer) <= 16, "no such RDMA port")
        _check(0 <= self.prefix <= address.max_prefixlen, f"prefix /{self.prefix} is none")
        _check(0 <= self.rate_mbit <= SPEED_MBIT_MAX, f"rate {self.rate_mbit} is none")


class Card(msgspec.Struct, frozen=True, array_like=True):
    """Who an engine is and every way to reach it. A restarted process has another incarnation."""

    incarnation: bytes
    host: Host
    pid: int
    uid: int
    name: str  # for people: host name and process id, or what the engine was named
    addresses: tuple[Address, ...]
    listed: bool  # its rails were listed by hand: the i-th is meant for the i-th
    transports: tuple[
        str, ...
    ]  # what it is ready to use, of "shm", "cma", "tcp", "rdma", "cuda_ipc"
    local_name: str  # abstract Unix socket, without the leading zero byte; "": it has none
    probe_address: int  # a word of its memory, for the test whether it can be read directly
    probe_value: int
    ports: tuple[CardPort, ...] = ()

    def __post_init__(self) -> None:
        _check(len(self.incarnation) == INCARNATION_BYTES, "the incarnation has a wrong length")
        _check(len(self.addresses) <= ADDRESSES_MAX, f"more than {ADDRESSES_MAX} addresses")
        _check(len(self.ports) <= PORTS_MAX, f"more than {PORTS_MAX} RDMA ports")
        _check(len(self.name.encode()) <= NAME_BYTES_MAX, "the name is too long")
        _check(len(self.local_name.encode()) <= 100, "the Unix socket's name is too long")
        _check(0 < self.pid < 1 << 31 and 0 <= self.uid < 1 << 32, "no such process or user")
        short = all(len(name) <= 8 for name in self.transports)
        _check(len(self.transports) <= 8 and short, "the list of transports is too long")
        for word in (self.probe_address, self.probe_value):
            _check(0 <= word < 1 << 64, "the probe word has no 64 bits")

    def encode(self) -> bytes:
        """The card as bytes, for `decode` in another process."""
        return envelope.wrap(b"C", self)

    @staticmethod
    def decode(data: bytes | bytearray | memoryview) -> Card:
        """The card in these bytes. Raises TicketError for bytes that are not one."""
        return envelope.unwrap(b"C", data, _decoder)


def _check(good: bool, complaint: str) -> None:
    if not good:
        raise ValueError(complaint)


_decoder = msgspec.msgpack.Decoder(Card)
