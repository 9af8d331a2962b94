"""Stage: tests. Writes the archive that a kernel unpacks as its first filesystem (cpio, "newc").

Called by image.py and machine.py. Archives may be laid one behind the other: the kernel unpacks
each, so the part that changes with every run is a small one of its own. What always holds: folders
come before what lies in them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

FOLDER, FILE = 0o040755, 0o100644
PROGRAM = 0o100755
END = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """A file or folder; `path` has no leading slash."""

    path: str
    data: bytes = b""
    mode: int = FILE


def archive(entries: Iterable[Entry]) -> bytes:
    """The entries, and the folders that they lie in."""
    folders: set[str] = set()
    parts: list[bytes] = []
    for entry in entries:
        names = entry.path.split("/")
        for depth in range(1, len(names)):
            parts += _folder("/".join(names[:depth]), folders)
        if entry.mode == FOLDER:
            parts += _folder(entry.path, folders)
        else:
            parts.append(_packed(entry))
    parts.append(_packed(Entry(END, mode=0)))
    whole = b"".join(parts)
    return whole + bytes(-len(whole) % 512)


def _folder(path: str, made: set[str]) -> list[bytes]:
    if path in made:
        return []
    made.add(path)
    return [_packed(Entry(path, mode=FOLDER))]


def _packed(entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    # inode, mode, user, group, links, time, size, four device numbers, length of name, check sum
    numbers = (0, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name
    head += bytes(-len(head) % 4)
    return head + entry.data + bytes(-len(entry.data) % 4)
