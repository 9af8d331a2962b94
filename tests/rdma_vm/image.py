"""Stage: tests. The virtual machine's kernel and first filesystem, made once and kept in build/.

Called by machine.py. What always holds: a prepared image fits these sources (its folder's name has
their digest), and a half-made one is never seen.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import packages
from .cpio import FOLDER, PROGRAM, Entry, archive
from .kernel import Modules, UnknownKernelError, elf_kernel

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent / "build/rdma_vm"
KERNEL_PACKAGE = "linux-image-amd64"
# Loaded by guest/init, before there is a filesystem.
FIRST = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_console")
# Loaded by guest/stage2: soft-RoCE, rails to run it on, and what disturbs them.
RAILS = ("veth", "crc32_generic", "ib_uverbs", "rdma_ucm", "rdma_rxe")
DISTURBERS = ("sch_netem", "sch_tbf", "ifb")
SECOND = (*RAILS, *DISTURBERS)


@dataclass(frozen=True)
class Image:
    """The files to boot from."""

    kernel: Path
    initrd: Path


def prepared() -> Image:
    """The image for these sources; the first time it is downloaded and made (about 15 s)."""
    home = CACHE / _digest()
    if not home.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix="making-") as folder:
            made = Path(folder) / "made"
            made.mkdir()
            _make(Path(folder), made)
            if not home.is_dir():  # Another run may have been quicker.
                os.replace(made, home)
        for old in CACHE.iterdir():
            if old.is_dir() and len(old.name) == len(home.name) and old != home:
                shutil.rmtree(old, ignore_errors=True)
    return Image(home / "vmlinux", home / "initrd")


def _digest() -> str:
    sources = [HERE / name for name in ("cpio.py", "image.py", "kernel.py")]
    sources += sorted((HERE / "guest").iterdir())
    digest = hashlib.sha256()
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _make(work: Path, made: Path) -> None:
    for package in (KERNEL_PACKAGE, "busybox-static"):
        packages.unpack(packages.download(package, CACHE / "packages"), work / "root")
    [image] = (work / "root/boot").glob("vmlinuz-*")
    (made / "vmlinux").write_bytes(elf_kernel(image.read_bytes()))
    modules = Modules([work / "root/lib/modules", work / "root/usr/lib/modules"])
    built_in = {
        Path(line).stem.replace("-", "_")
        for listed in (work / "root").rglob("modules.builtin")
        for line in listed.read_text().splitlines()
    }
    absent = [name for name in FIRST + SECOND if name not in modules and name not in built_in]
    if absent:
        raise UnknownKernelError(f"{image.name} has no module {', '.join(absent)}")
    busybox = (work / "root/bin/busybox").read_bytes()
    (made / "initrd").write_bytes(archive(_entries(modules, busybox)))


def _entries(modules: Modules, busybox: bytes) -> list[Entry]:
    first = modules.in_order(FIRST)
    second = [name for name in modules.in_order(FIRST + SECOND) if name not in first]
    entries = [Entry(name, mode=FOLDER) for name in ("dev", "proc", "sys", "host", "top", "new")]
    entries.append(Entry("bin/busybox", busybox, PROGRAM))
    entries.append(Entry("init", (HERE / "guest/init").read_bytes(), PROGRAM))
    entries.append(Entry("vm/stage2", (HERE / "guest/stage2").read_bytes(), PROGRAM))
    for name, listed in (("first", first), ("second", second)):
        entries.append(Entry(f"vm/{name}", "".join(f"{n}\n" for n in listed).encode()))
    entries += [Entry(f"vm/{name}.ko", modules.content(name)) for name in first + second]
    return entries
