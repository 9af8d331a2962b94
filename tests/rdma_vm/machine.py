"""Stage: tests. One run of the virtual machine: boot, one command, its output and its status.

Called by __main__.py on the main thread. The guest sees this machine's files, read-only below a
layer that is thrown away; only folders that are named are written through. What always holds: when
`run` returns, the guest has ended and its folder is gone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .cpio import PROGRAM, Entry, archive
from .image import Image
from .packages import QEMU
from .ports import Ports

MTU = 4200  # Carries RDMA's largest packets, of 4096 bytes.
MEMORY_MIB = 3072
PASSED_ON = ("PATH", "HOME", "LANG", "VIRTUAL_ENV", "PYENV_ROOT", "CI", "PYTHONDONTWRITEBYTECODE")
BOOT = (
    "console=ttyS0 quiet loglevel=3 panic=-1 reboot=t mitigations=off nokaslr audit=0 nowatchdog "
    "no_timer_check random.trust_cpu=on rcupdate.rcu_expedited=1 "
    "init_on_alloc=0"
)
TIMED_OUT, DIED = 124, 125


@dataclass(frozen=True)
class Run:
    """What is to be run, and on what."""

    command: tuple[str, ...]
    rails: int = 2
    writable: tuple[Path, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 600.0
    counted: bool = True  # its clock counts instructions, where the processor is emulated


@dataclass(frozen=True)
class Ended:
    """How it went: the command's status, or 124 (no end in time) or 125 (the guest died)."""

    status: int
    boot_s: float
    command_s: float


def run(image: Image, wanted: Run) -> Ended:
    """Boots, runs, and passes the output on to this process's own."""
    folder = Path(tempfile.mkdtemp(prefix="rdma-vm-"))
    began = time.monotonic()
    ports = Ports(folder)
    guest = None
    try:
        initrd = folder / "initrd"
        initrd.write_bytes(image.initrd.read_bytes() + _own_part(wanted))
        with (folder / "qemu").open("wb") as words:
            guest = subprocess.Popen(
                _command_line(image.kernel, initrd, folder, wanted, ports),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
            )
        said = ports.relay(guest, began + wanted.timeout_s)
        if said.status is not None:
            ended = said.ended_at - said.ready_at
            return Ended(said.status, said.ready_at - began, ended)
        _explain(folder, said.timed_out, wanted.timeout_s)
        return Ended(TIMED_OUT if said.timed_out else DIED, 0.0, 0.0)
    finally:
        if guest is not None:
            guest.kill()  # After its own power off this does nothing.
            guest.wait()
        ports.close()
        shutil.rmtree(folder, ignore_errors=True)


def _own_part(wanted: Run) -> bytes:
    """What differs from run to run: command, environment, settings."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment |= {"RDMA_VM_RAILS": str(wanted.rails)} | dict(wanted.environment)
    script = [f"cd {shlex.quote(os.getcwd())} || exit 126"]
    script += [f"export {name}={shlex.quote(text)}" for name, text in environment.items()]
    script.append(f"exec {shlex.join(wanted.command)}")
    settings = f"RAILS={wanted.rails}\nMTU={MTU}\nNOW={int(time.time())}\n"
    writable = "".join(f"w{place} {path}\n" for place, path in enumerate(wanted.writable))
    return archive(
        [
            Entry("vm/command", "\n".join([*script, ""]).encode(), PROGRAM),
            Entry("vm/settings", settings.encode()),
            Entry("vm/writable", writable.encode()),
        ]
    )


def _command_line(kernel: Path, initrd: Path, folder: Path, wanted: Run, ports: Ports) -> list[str]:
    line = [QEMU, "-M", "pc", *_processors(wanted.counted)]
    line += ["-m", str(MEMORY_MIB), "-nodefaults", "-no-user-config", "-no-reboot"]
    line += ["-display", "none", "-monitor", "none", "-serial", f"file:{folder}/console"]
    line += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", BOOT]
    line += ["-device", "virtio-serial-pci,max_ports=8"]
    for name, path in ports.paths.items():
        line += ["-chardev", f"socket,id={name},path={path}"]
        line += ["-device", f"virtserialport,chardev={name},name=vm.{name}"]
    shared = [("host", Path("/"), ",readonly=on")]
    shared += [(f"w{place}", path, "") for place, path in enumerate(wanted.writable)]
    for tag, path, mode in shared:
        line += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{mode}"]
        line += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    return line


def _processors(counted: bool) -> list[str]:
    """The processor itself where it can, else an emulated one.

    An emulated one is slow, and slower still, for moments too, where others use this machine. To
    the guest that looks like silence on its wires. So its clock counts instructions, a nanosecond
    each: however slow it is, it does not notice, and what it measures does not depend on others.
    Only one processor can be counted so; without it there are as many as here are.
    """
    cpu = ["-cpu", "max,la57=off"]
    kvm = ["-accel", "kvm", *cpu]
    many = ["-smp", str(max(2, min(os.cpu_count() or 2, 8)))]
    if _virtualises(kvm):
        return [*kvm, *many]
    if counted:
        return ["-accel", "tcg,thread=single,tb-size=1024", *cpu, "-icount", "shift=0", "-smp", "1"]
    return ["-accel", "tcg,thread=multi,tb-size=1024", *cpu, *many]


def _virtualises(kvm: list[str]) -> bool:
    """Whether qemu can use KVM here. /dev/kvm alone says too little: a host that is a guest itself
    may offer it, and emulate, or fail at the first instruction."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if flags is None or not {"vmx", "svm"} & set(flags.group(1).split()):
        return False
    command = [QEMU, "-M", "pc", *kvm, "-m", "64", "-nodefaults", "-display", "none", "-S"]
    try:
        done = subprocess.run(
            [*command, "-monitor", "stdio"], input=b"quit\n", capture_output=True, timeout=10
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _explain(folder: Path, timed_out: bool, timeout_s: float) -> None:
    why = f"still running after {timeout_s:g} s" if timed_out else "it ended without a status"
    print(f"rdma_vm: the guest failed: {why}", file=sys.stderr)
    for name in ("qemu", "console"):
        path = folder / name
        text = path.read_bytes()[-4000:].decode(errors="replace").strip() if path.exists() else ""
        if text:
            print(f"--- {name}\n{text}", file=sys.stderr)
