"""Tests of fabric_talk.py: two doctors of two hosts, and what happens to whoever is none."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.fake_sysfs import FakePort, FakeSysfs, roce_gids
from torch_tent import fabric_talk
from torch_tent.fabric import same_kind
from torch_tent.fabric_talk import End, Join, Joined, Talk, TalkError
from torch_tent.rdma_ports import rdma_ports

END = End(7, 0, 5, "fe80:" + "0000:" * 6 + "0001", 1 << 40, 99)


def both(ours: bytes | None, theirs: bytes | None) -> list[Any]:
    """Two ends of a connection after their greeting: a Talk each, or the error."""
    left, right = socket.socketpair()
    found: list[Any] = [None, None]

    def greet(place: int, sock: socket.socket, secret: bytes | None) -> None:
        try:
            found[place] = Talk(sock, secret, dialed=place == 0)
        except TalkError as error:
            sock.close()
            found[place] = error

    other = threading.Thread(target=greet, args=(1, right, theirs))
    other.start()
    greet(0, left, ours)
    other.join(20)
    return found


@pytest.mark.parametrize("secret", [b"one", None])
def test_who_knows_the_secret_is_understood(secret: bytes | None) -> None:
    near, far = both(secret, secret)
    near.send(Join("x0:1", 3, END))
    assert far.receive(Join) == Join("x0:1", 3, END)
    far.send(Joined(None, "no such port", "name another"))
    assert near.receive(Joined).trouble == "no such port"
    near.close()
    with pytest.raises(TalkError, match="hung up"):
        far.receive(Join)
    far.close()


def test_who_does_not_is_sent_away_before_anything_is_said() -> None:
    near, far = both(b"one", b"another")
    assert isinstance(near, TalkError)
    assert isinstance(far, TalkError)
    assert "TENT_SECRET" in str(far)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (struct.pack("<I", 1 << 30), "is something else there"),
        (struct.pack("<I", 3) + b"GET", "another version"),
        (b"\x01", "hung up"),
        (b"", "hung up"),
    ],
)
def test_what_is_no_message_is_said_so(data: bytes, complaint: str) -> None:
    near, far = both(b"one", b"one")
    near._sock.sendall(data)
    near.close()
    with pytest.raises(TalkError, match=complaint):
        far.receive(Join)
    far.close()


def test_another_message_than_expected_is_an_error() -> None:
    near, far = both(None, None)
    near.send(Joined(END))
    with pytest.raises(TalkError, match="said Joined, not Join"):
        far.receive(Join)
    near.close()
    far.close()


@pytest.mark.parametrize(
    ("address", "secret", "complaint"),
    [
        ("10.0.0.1:18600", None, "set the same TENT_SECRET on both"),
        ("10.0.0.1", b"s", "no HOST:PORT"),
        ("127.0.0.1:0", b"s", "no HOST:PORT"),
        ("127.0.0.1:1", None, "run doctor --rdma --listen there"),
    ],
)
def test_an_address_that_cannot_be_called_says_why(
    address: str, secret: bytes | None, complaint: str
) -> None:
    with pytest.raises(TalkError, match=complaint):
        fabric_talk.dial(address, secret)


def test_a_port_is_told_so_that_the_other_host_finds_the_gids_that_meet(tmp_path: Path) -> None:
    fake = FakeSysfs(tmp_path)
    fake.interface("ens0")
    gids = roce_gids("ens0", "fe80:0000:0000:0000:ba59:9fff:fe12:3456", "10.0.0.5")
    fake.device("x0", [FakePort(gids=gids)], uverbs=0)
    [port] = rdma_ports(tmp_path)
    far = fabric_talk.as_port(fabric_talk.as_far(port), "there")
    assert (far.name, far.trouble) == ("x0:1", "")
    assert same_kind(port, far) == (port.gids[0], far.gids[0])
    assert [gid.ip for gid in far.gids] == [gid.ip for gid in port.gids]
    nonsense = fabric_talk.FarPort("x0", 1, "Ethernet", (fabric_talk.FarGid(0, "x", "RoCE v2"),))
    with pytest.raises(TalkError, match="names a GID that is none"):
        fabric_talk.as_port(nonsense, "there")
