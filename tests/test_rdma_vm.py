"""Tests of rdma_vm: what it makes of packages and what it says, without booting anything."""

from __future__ import annotations

import lzma
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rdma_vm import __main__, image, packages
from tests.rdma_vm.cpio import FOLDER, Entry, archive
from tests.rdma_vm.kernel import Modules, UnknownKernelError, elf_kernel
from tests.rdma_vm.ports import Ports

ELF = b"\x7fELF" + bytes(range(256))


def unpacked(data: bytes) -> list[tuple[str, int, bytes]]:
    """An archive's entries as a kernel reads them: name, mode, content."""
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        at += (110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert not any(data[at:])
            return found
        found.append((name, mode, data[at : at + size]))
        at += (size + 3) // 4 * 4


def test_an_archive_has_every_folder_once_and_before_its_files() -> None:
    entries = [Entry("a/b/c", b"12345"), Entry("a/d", mode=FOLDER), Entry("a/b/e", b"")]
    data = archive(entries)
    assert len(data) % 512 == 0
    names = [name for name, _, _ in unpacked(data)]
    assert names == ["a", "a/b", "a/b/c", "a/d", "a/b/e"]
    assert ("a/b/c", 0o100644, b"12345") in unpacked(data)
    assert [mode for name, mode, _ in unpacked(data) if name == "a/d"] == [FOLDER]


def boot_image(payload: bytes) -> bytes:
    """A file as Linux's boot protocol lays it out: one setup sector, then 64 bytes of code."""
    whole = bytearray(2 * 512 + 64) + payload
    whole[0x1F1] = 1
    struct.pack_into("<II", whole, 0x248, 64, len(payload))
    return bytes(whole)


def test_the_kernel_is_found_inside_its_image() -> None:
    packed = lzma.compress(ELF) + struct.pack("<I", len(ELF))
    assert elf_kernel(boot_image(packed)) == ELF
    assert elf_kernel(boot_image(ELF)) == ELF
    with pytest.raises(UnknownKernelError, match="packed in an unknown way"):
        elf_kernel(boot_image(b"mystery"))


def module(folder: Path, name: str, depends: str, before: str = "") -> None:
    marks = f"\0depends={depends}\0" if depends else "\0depends=\0"
    marks += f"\0softdep=pre: {before}\0" if before else ""
    signature = b"signed" + b"\0" * 8 + struct.pack(">I", 6) + b"~Module signature appended~\n"
    (folder / f"{name}.ko.xz").write_bytes(lzma.compress(ELF + marks.encode() + signature))


def test_modules_come_after_what_they_need_and_without_signature(tmp_path: Path) -> None:
    module(tmp_path, "rdma-rxe", "ib_uverbs,ib_core", before="crc32")
    module(tmp_path, "ib_uverbs", "ib_core")
    module(tmp_path, "ib_core", "built_in")
    module(tmp_path, "crc32", "")
    modules = Modules([tmp_path])
    assert "rdma_rxe" in modules
    ordered = modules.in_order(["rdma_rxe", "ib_uverbs"])
    assert ordered == ["ib_core", "ib_uverbs", "crc32", "rdma_rxe"]
    assert modules.content("crc32") == ELF + b"\0depends=\0"


def test_output_news_and_status_are_told_apart(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    ports = Ports(tmp_path)
    guest = """
import socket, sys
texts = (b"said\\n", b"complained\\n", b"ready\\nnote no rail\\nstatus 7\\n")
ends = [socket.socket(socket.AF_UNIX) for _ in texts]
for end, path, text in zip(ends, sys.argv[1:], texts):
    end.connect(path)
    end.sendall(text)
"""
    paths = [str(path) for path in ports.paths.values()]
    with subprocess.Popen([sys.executable, "-c", guest, *paths]) as running:
        said = ports.relay(running, time.monotonic() + 30)
    ports.close()
    assert (said.status, said.timed_out) == (7, False)
    assert 0 < said.ready_at <= said.ended_at
    out, err = capfdbinary.readouterr()
    assert out == b"said\n"
    assert set(err.splitlines()) == {b"complained", b"rdma_vm: no rail"}


def test_a_guest_that_does_not_end_is_left_at_the_deadline(tmp_path: Path) -> None:
    ports = Ports(tmp_path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        said = ports.relay(running, time.monotonic() + 0.3)
        running.kill()
    ports.close()
    assert (said.status, said.timed_out) == (None, True)


def test_words_behind_the_dashes_are_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    options = __main__._parse(["run", "--rails", "3", "--env", "A=b=c", "--", "ls", "--", "-l"])
    assert (options.rails, options.env, options.words) == (3, [("A", "b=c")], ["ls", "--", "-l"])
    for wrong in (["run"], ["run", "ls"], ["run", "--env", "1=2", "--", "ls"]):
        with pytest.raises(SystemExit):
            __main__._parse(wrong)
    assert "run needs a command" in capsys.readouterr().err


def test_all_tests_run_there_unless_some_are_named() -> None:
    named = ["-x", "tests/rdma/test_doctor.py::test_all"]
    assert __main__._pytest(named)[-2:] == named
    assert "tests/rdma" not in __main__._pytest(named)
    assert __main__._pytest(["-k", "fault"])[-3:] == ["tests/rdma", "-k", "fault"]


@pytest.mark.parametrize(
    ("machine", "program", "user", "reason"),
    [
        ("aarch64", "/usr/bin/apt-get", 0, "this machine is aarch64"),
        ("x86_64", None, 0, "there is no apt-get here"),
        ("x86_64", "/usr/bin/apt-get", 1000, "as root: apt-get install .* perftest"),
    ],
)
def test_where_they_cannot_run_the_reason_is_said_and_the_status_is_not_success(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    machine: str,
    program: str | None,
    user: int,
    reason: str,
) -> None:
    monkeypatch.setattr(packages.platform, "machine", lambda: machine)
    monkeypatch.setattr(packages.shutil, "which", lambda name: program)
    monkeypatch.setattr(packages.os, "geteuid", lambda: user)
    monkeypatch.setattr(packages, "missing", lambda: ["perftest"])
    monkeypatch.setattr(image, "prepared", lambda: pytest.fail("it went on"))
    assert __main__.main(["test"]) == __main__.NOT_RUN
    shown = capsys.readouterr().err
    assert "THE RDMA TESTS DID NOT RUN" in shown
    with pytest.raises(packages.NotPossibleError, match=reason):
        packages.require()
