"""Stage: tests. Debian packages that the virtual machine needs: installed ones and unpacked ones.

Called by image.py and __main__.py. Installing needs root and happens only when asked for; the
kernel is downloaded and unpacked, never installed. What always holds: what is missing is named
together with the command that brings it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

QEMU = "qemu-system-x86_64"
# Package, and a file that is there when it is installed. The guest sees these files, too.
WANTED = {
    "qemu-system-x86": f"/usr/bin/{QEMU}",
    "rdma-core": "/usr/share/doc/rdma-core",
    "ibverbs-providers": "/usr/lib/x86_64-linux-gnu/libibverbs/librxe-rdmav34.so",
    "libibverbs1": "/usr/lib/x86_64-linux-gnu/libibverbs.so.1",
    "perftest": "/usr/bin/ib_write_bw",
    "iproute2": "/usr/share/doc/iproute2",
    "python3-pyverbs": "/usr/lib/python3/dist-packages/pyverbs",
}


class NotPossibleError(Exception):
    """The tests cannot run here; the text says why and what to do."""


def missing() -> list[str]:
    """Packages that are not installed."""
    return [package for package, sign in WANTED.items() if not Path(sign).exists()]


def require() -> None:
    """Installs what is missing. Raises NotPossibleError where that cannot be done."""
    if platform.machine() != "x86_64":
        raise NotPossibleError(
            f"this machine is {platform.machine()}, and the virtual machine is x86-64"
        )
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise NotPossibleError("there is no apt-get here: the machine is made of Debian packages")
    lacking = missing()
    if not lacking:
        return
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *lacking]
    if os.geteuid() != 0:
        raise NotPossibleError(f"packages are missing; as root: {' '.join(command)}")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (["apt-get", "update"], command):
        if subprocess.run(words, env=environment).returncode != 0:
            raise NotPossibleError(f"{' '.join(words)} failed: its messages are above")


def download(package: str, into: Path) -> Path:
    """Fetches a package's file; one that is a mere reference to a kernel is followed."""
    into.mkdir(parents=True, exist_ok=True)
    trouble = ""
    for renewed in (False, True):
        if renewed:  # What apt knows may be older than the archive, or nothing yet.
            if os.geteuid() != 0:
                break
            subprocess.run(["apt-get", "update"], capture_output=True)
        real = _referred(package)
        # As root, apt would otherwise change to a user who may not write here.
        command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", real]
        if not list(into.glob(f"{real}_*.deb")):
            trouble = subprocess.run(command, cwd=into, capture_output=True, text=True).stderr
        found = sorted(into.glob(f"{real}_*.deb"))
        if found:
            return found[-1]
    raise NotPossibleError(
        f"apt-get download {package} failed (is apt-get update due?): {trouble.strip()[-400:]}"
    )


def _referred(package: str) -> str:
    command = ["apt-cache", "depends", "--no-recommends", "--no-suggests", package]
    done = subprocess.run(command, capture_output=True, text=True)
    match = re.search(r"^\s+Depends: (linux-image-\S+)$", done.stdout, re.MULTILINE)
    return match.group(1) if match else package


def unpack(file: Path, into: Path) -> None:
    """Unpacks a package's files below a folder."""
    done = subprocess.run(["dpkg-deb", "-x", str(file), str(into)], capture_output=True, text=True)
    if done.returncode != 0:
        raise NotPossibleError(f"{file} cannot be unpacked: {done.stderr.strip()}")
