"""Tests of listener.py: the doors are open for those who may come in, and for nobody else."""

from __future__ import annotations

import os
import random
import socket
import time
from typing import Any

import msgspec
import pytest

from tests.parties import TCP, TCP_ONLY, open_fds, parties, wait_until
from tests.strangers import (
    SECRET,
    connect,
    greeting,
    insiders,
    read_all,
    read_message,
    speak,
)
from torch_tent import envelope, topology
from torch_tent.conversation import (
    Attach,
    Welcome,
)
from torch_tent.errors import SettingsError, TentError
from torch_tent.settings import Settings

party = pytest.fixture(parties)
insider = pytest.fixture(insiders)


def test_the_same_secret_lets_in_and_another_does_not(
    party: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rails = ("127.0.0.2", "127.0.0.3")
    good = party(Settings(secret=b"one", rails=rails))
    friend = party(Settings(secret=b"one", rails=rails))
    wrong = party(Settings(secret=b"two", rails=rails))
    none = party(Settings(rails=rails))
    friend.call(good)
    good.engine.wait_for(lambda engine: len(engine.links) == 2)
    for stranger in (wrong, none):
        for mask in (0xFF, TCP):
            peer = stranger.call(good, mask)
            stranger.engine.wait_for(lambda engine, peer=peer: peer in engine.lost)
            assert "the secrets differ: set the same TENT_SECRET" in stranger.engine.lost[peer]
    assert stranger.engine.history == []
    assert len(good.engine.history) == 2  # The friend's.
    refused = [text for r in caplog.records if "is refused" in (text := r.getMessage())]
    assert len(refused) == len(set(refused)) == 3  # From the Unix socket and from each address.


def test_only_loopback_without_a_secret(party: Any) -> None:
    public = [i for i in topology.interfaces() if i.up and not i.loopback and i.addresses]
    if not public:
        pytest.skip("this host has no interface but loopback")
    for entry in (public[0].name, public[0].addresses[0].host):
        with pytest.raises(SettingsError, match="there is no secret: set TENT_SECRET"):
            party(Settings(rails=(entry,)))


def test_a_process_of_another_user_is_refused_without_a_secret(
    party: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = party(), party()
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    for mask in (0xFF, TCP):
        peer = a.call(b, mask)
        a.engine.wait_for(lambda engine, peer=peer: peer in engine.lost)
        assert f"process of user {real}, this is user {real + 1}" in a.engine.lost[peer]
    assert b.engine.history == []


def test_another_hosts_engine_needs_a_secret(party: Any) -> None:
    a, b = party(), party()
    host = msgspec.structs.replace(b.card().host, boot_id="another")
    with pytest.raises(TentError, match=r"on another host.*set the same TENT_SECRET for both"):
        a.control.peer(msgspec.structs.replace(b.card(), host=host))


def test_a_port_in_use_is_an_error_that_says_so(party: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"TENT_LISTEN_PORT\) = {port} is in use"):
            party(Settings(listen_port=port))


def test_an_address_of_another_host_is_an_error(party: Any) -> None:
    with pytest.raises(SettingsError, match="no address of this host"):
        party(Settings(rails=("203.0.113.7",), secret=b"s"))


def test_without_a_common_transport_the_call_fails(party: Any) -> None:
    a, b = party(Settings(transports=("shm",))), party(TCP_ONLY)
    with pytest.raises(TentError, match=r"no transport in common with .*: shm here, tcp there"):
        a.control.peer(b.card())


def test_ones_own_card_is_refused(party: Any) -> None:
    a = party()
    with pytest.raises(TentError, match="its own peer"):
        a.control.peer(a.card())


def test_a_closed_control_plane_says_so(party: Any) -> None:
    a, b = party(), party()
    a.close()
    a.control.close()
    with pytest.raises(TentError, match="closed: make a new one"):
        a.control.peer(b.card())


def test_a_forked_child_is_told_and_holds_no_door(party: Any) -> None:
    a, b = party(TCP_ONLY), party(TCP_ONLY)
    card = b.card()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            a.control.peer(card)
        except TentError as error:
            os.write(write, str(error).encode())
        ports = [s.fileno() for s in a.control._sockets if s.fileno() != -1]
        os.write(write, f" open: {ports}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    told = os.read(read, 4096).decode()
    os.close(read)
    assert "before the fork: make engines" in told
    assert told.endswith(" open: []")
    a.call(b)
    a.engine.wait_for(lambda engine: len(engine.links) == 1)


@pytest.mark.parametrize("local", [False, True])
def test_garbage_closes_its_connection_and_nothing_else(party: Any, local: bool, seed: int) -> None:
    a, b = party(SECRET), party(SECRET)
    dice = random.Random(seed)
    hello = envelope.wrap(b"H", greeting(a.card(), b.card()))
    for _ in range(60):
        if dice.random() < 0.5:
            data = dice.randbytes(dice.choice([1, 15, 16, 17, 300, 5000]))
        else:
            data = bytearray(hello)
            for _ in range(dice.randint(1, 4)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            data = bytes(data[: dice.randrange(1, len(data))])
        with connect(b.card(), local) as sock:
            speak(sock, data)
    a.call(b)
    b.engine.wait_for(lambda engine: len(engine.links) == 2)
    assert len(b.engine.history) == 2
    assert b.engine.names == [a.card().name]


def test_a_port_scanner_gets_no_answer(party: Any) -> None:
    b = party(SECRET)
    for data in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-Scan\r\n",
        b"\x16\x03\x01\x02\x00",
    ):
        with connect(b.card()) as sock:
            assert speak(sock, data) == b""


def test_slow_clients_do_not_keep_others_out(party: Any) -> None:
    a, b = party(SECRET), party(SECRET)
    slow = [connect(b.card()) for _ in range(100)]
    try:
        for sock in slow[::2]:
            sock.sendall(b"TENT")
        began = time.monotonic()
        a.call(b, TCP)
        b.engine.wait_for(lambda engine: len(engine.links) == 1)
        assert time.monotonic() - began < 2.0
        for sock in slow:  # Each one is hung up on, after a while.
            assert read_all(sock) == b""
    finally:
        for sock in slow:
            sock.close()


@pytest.mark.parametrize("count", [0, 2, 8])
def test_a_wrong_number_of_descriptors_is_refused_and_none_is_kept(
    insider: Any, count: int
) -> None:
    assert isinstance(insider(local=True), Welcome)
    memory = os.memfd_create("of-the-insider")
    sock = insider.sockets[-1]
    data = envelope.wrap(b"H", Attach())
    sock.setblocking(True)
    if count:
        socket.send_fds(sock, [data], [memory] * count)
    else:
        sock.sendall(data)
    os.close(memory)
    assert read_all(sock) == b""
    assert insider.engine.history == []
    wait_until(lambda: not any("of-the-insider" in what for what in open_fds().values()))


def test_descriptors_at_the_wrong_moment_are_not_kept(insider: Any) -> None:
    sock = connect(insider.dialer.card(), local=True)
    memory = os.memfd_create("of-the-insider")
    with sock:
        card = insider.dialer.card()
        socket.send_fds(sock, [envelope.wrap(b"H", greeting(card, card))], [memory])
        os.close(memory)
        assert len(read_message(sock)) > 0
        assert not any("of-the-insider" in what for what in open_fds().values())
