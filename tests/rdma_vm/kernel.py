"""Stage: tests. What is taken out of a distribution's kernel package: the ELF kernel and modules.

Called by image.py; pure functions over files. What always holds: modules come in an order in which
each finds what it needs already loaded.
"""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

SETUP_SECTORS, PAYLOAD_OFFSET, PAYLOAD_LENGTH = 0x1F1, 0x248, 0x24C  # Linux's x86 boot protocol
SECTOR = 512
SIGNED = b"~Module signature appended~\n"


class UnknownKernelError(Exception):
    """The package is not as expected; the text says what was missing."""


def elf_kernel(image: bytes) -> bytes:
    """The ELF file inside a bzImage. It boots without BIOS and without unpacking itself, which
    under emulation saves seconds."""
    start = ((image[SETUP_SECTORS] or 4) + 1) * SECTOR
    start += struct.unpack_from("<I", image, PAYLOAD_OFFSET)[0]
    return _unpacked(image[start : start + struct.unpack_from("<I", image, PAYLOAD_LENGTH)[0]])


def _unpacked(data: bytes) -> bytes:
    if data.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(
            data
        )  # Four bytes of length follow: not an error.
    if data.startswith(b"\x1f\x8b\x08"):
        return zlib.decompressobj(31).decompress(data)
    if data.startswith(b"\x7fELF"):
        return data
    raise UnknownKernelError(f"a file is packed in an unknown way: it begins with {data[:4]!r}")


class Modules:
    """The modules below some folders, with what each needs."""

    def __init__(self, roots: Iterable[Path]) -> None:
        found = (path for root in roots for path in root.rglob("*.ko*"))
        self._paths = {_plain(path.name.partition(".ko")[0]): path for path in found}
        self._contents: dict[str, bytes] = {}

    def __contains__(self, name: str) -> bool:
        return _plain(name) in self._paths

    def content(self, name: str) -> bytes:
        """The module as it is loaded: unpacked and without its signature, whose check would cost
        time under emulation (the kernel is only tainted by it)."""
        name = _plain(name)
        if name not in self._contents:
            data = _unpacked(self._paths[name].read_bytes())
            if data.endswith(SIGNED):
                [size] = struct.unpack(">I", data[-len(SIGNED) - 4 : -len(SIGNED)])
                data = data[: -len(SIGNED) - 12 - size]
            self._contents[name] = data
        return self._contents[name]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """The modules and what they need, each after what it needs. Built-in ones are left out."""
        ordered: list[str] = []
        for name in names:
            self._visit(_plain(name), ordered, set())
        return ordered

    def _visit(self, name: str, ordered: list[str], above: set[str]) -> None:
        if name in ordered or name in above or name not in self._paths:
            return
        for needed in self._needs(name):
            self._visit(needed, ordered, above | {name})
        ordered.append(name)

    def _needs(self, name: str) -> list[str]:
        data = self.content(name)
        needed = b",".join(re.findall(rb"\0depends=([^\0]+)\0", data)).decode().split(",")
        for before in re.findall(rb"\0softdep=pre: ([^\0]*)\0", data):
            needed += before.decode().split()
        return [_plain(other) for other in needed if other]


def _plain(name: str) -> str:
    """Module names are written with both - and _."""
    return name.replace("-", "_")
