"""Stage: CLI. `python -m torch_tent doctor`: what this host offers, what is missing, what to do.

Called by torch_tent/__main__.py on the main thread. Looks and tries, and changes nothing: the probe
of direct memory access starts one child process, which has ended when it returns. What always
holds: the exit status is 0 only if an engine with these settings can be made here.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import fabric, gpu_paths, hardware, rdma_health, rdma_measure, topology
from .errors import SettingsError
from .listener import open_tcp
from .rail_ends import RailEnd, rail_ends
from .settings import Settings

SECRET_BYTES_MIN = 16
PROBE_TIMEOUT_S = 30.0
MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state`: ok, note (works, but) or bad (no engine possible)."""

    topic: str
    state: str
    text: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The doctor's options."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    rdma = "try every pair of RDMA ports with pyverbs alone: which reaches which"
    parser.add_argument("--rdma", action="store_true", help=rdma)
    listen = "with --rdma: make the far ends for another host, which says --to"
    parser.add_argument("--listen", metavar="HOST:PORT", help=listen)
    parser.add_argument("--to", metavar="HOST:PORT", help="with --rdma: try the listening host")


def run(options: argparse.Namespace) -> int:
    """Prints the findings; 0 if an engine can be made, else 1."""
    findings = examine()
    if options.rdma or options.listen or options.to:
        findings += try_fabric(options.listen, options.to)
    if options.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        print(as_text(findings))
    return int(any(finding.state == "bad" for finding in findings))


def examine() -> list[Finding]:
    """Everything that can be known without another host."""
    try:
        settings = Settings.from_environment()
    except SettingsError as error:
        text = f"the environment cannot be used: {error}"
        settings = Settings()
        findings = [Finding("settings", "bad", text, "correct or unset the variable")]
    else:
        changed = [
            f"{f.name}={getattr(settings, f.name)!r}"
            for f in dataclasses.fields(settings)
            if f.repr and getattr(settings, f.name) != f.default
        ]
        text = f"from TENT_*: {', '.join(changed)}" if changed else "all as by default"
        findings = [Finding("settings", "ok", text)]
    parts: list[Callable[[Settings], list[Finding]]] = [
        _native,
        _secret,
        _interfaces,
        _rails,
        _shared_memory,
        _direct_memory,
        _huge_pages,
        _metrics,
        lambda settings: [Finding(*found) for found in rdma_health.rdma(settings)],
        lambda settings: [Finding(*found) for found in rdma_measure.registration(settings)],
        lambda _: [Finding(*found) for found in hardware.cuda()],
        lambda settings: [Finding(*found) for found in gpu_paths.gpu_paths(settings)],
    ]
    for part in parts:
        findings += part(settings)
    return findings


def try_fabric(listen: str | None, to: str | None) -> list[Finding]:
    """What verbs can do between the ports of this host, or of two, found out by using them."""
    try:
        settings = Settings.from_environment()
    except SettingsError:
        return []  # `examine` has said it.
    if listen:
        found = fabric.fabric_for_others(settings, listen)
    elif to:
        found = fabric.fabric_to(settings, to)
    else:
        found = fabric.fabric(settings)
    return [Finding(*each) for each in found]


def as_text(findings: list[Finding]) -> str:
    """The findings for people: one paragraph each, with what to do below."""
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.state]} {finding.topic}: {finding.text}")
        if finding.advice:
            lines.append(f"       do: {finding.advice}")
    bad = sum(finding.state == "bad" for finding in findings)
    end = f"{bad} thing(s) must be put right" if bad else "an engine can be made here"
    return "\n".join([*lines, end])


def _native(_: Settings) -> list[Finding]:
    try:
        from . import _engine
    except ImportError as error:
        advice = "build it: pip install --no-build-isolation -e . (or make setup)"
        return [Finding("native engine", "bad", f"it cannot be loaded: {error}", advice)]
    return [Finding("native engine", "ok", "loaded", facts={"path": _engine.__file__})]


def _secret(settings: Settings) -> list[Finding]:
    if settings.secret is None:
        text = "none: engines talk within this host only, and only with processes of this user"
        advice = "for several hosts set the same TENT_SECRET (or TENT_SECRET_FILE) on all of them"
        return [Finding("secret", "note", text, advice)]
    if len(settings.secret) < SECRET_BYTES_MIN:
        text = f"set, but only {len(settings.secret)} bytes long: it can be guessed"
        advice = "python -c 'import secrets; print(secrets.token_hex(16))' makes a good one"
        return [Finding("secret", "note", text, advice)]
    return [Finding("secret", "ok", "set")]


def _interfaces(_: Settings) -> list[Finding]:
    found = []
    for interface in topology.interfaces():
        addresses = ", ".join(f"{a.host}/{a.prefix}" for a in interface.addresses)
        speed = f"{interface.speed_mbit} Mbit/s" if interface.speed_mbit else "speed unknown"
        numa = f", NUMA node {interface.numa_node}" if interface.numa_node >= 0 else ""
        state = "up" if interface.up else "down"
        text = f"{state}, {speed}{numa}, {addresses or 'no address'}"
        facts = dataclasses.asdict(interface)
        found.append(Finding(f"interface {interface.name}", "ok", text, facts=facts))
    return found


def _rails(settings: Settings) -> list[Finding]:
    if "tcp" not in settings.transports:
        return [Finding("TCP rails", "note", "off: tcp is not in TENT_TRANSPORTS")]
    try:
        ends = tuple(rail_ends(settings, topology.interfaces()))
        sockets, addresses = open_tcp(ends, settings.listen_port)
    except SettingsError as error:
        return [Finding("TCP rails", "bad", str(error))]
    for sock in sockets:
        sock.close()
    facts = {"addresses": [a.host for a in addresses], "ends": [_facts(end) for end in ends]}
    if not addresses:
        advice = "bring an interface up, or leave tcp out of TENT_TRANSPORTS"
        return [Finding("TCP rails", "bad", "no interface is usable", advice, facts)]
    names = ", ".join(f"{end.interface} ({end.addresses[0].host})" for end in ends)
    return [Finding("TCP rails", "ok", f"{len(ends)} here: {names}", facts=facts)]


def _facts(end: RailEnd) -> dict[str, Any]:
    hosts = [address.host for address in end.addresses]
    return {"interface": end.interface, "addresses": hosts, "speed_mbit": end.speed_mbit}


def _shared_memory(settings: Settings) -> list[Finding]:
    if "shm" not in settings.transports:
        return [Finding("shared memory (shm)", "note", "off: shm is not in TENT_TRANSPORTS")]
    try:
        from . import _engine

        ours, theirs = _engine.open_local_channel()
    except (ImportError, RuntimeError, OSError) as error:
        advice = "raise the memory limit of the container, or set TENT_TRANSPORTS=tcp"
        return [Finding("shared memory (shm)", "bad", f"not possible: {error}", advice)]
    for fd in {*ours, *theirs}:
        os.close(fd)
    return [Finding("shared memory (shm)", "ok", "works")]


def _direct_memory(_: Settings) -> list[Finding]:
    """Whether a process that is no ancestor may read this one's memory, tried by a child."""
    topic = "direct reads of memory (cma)"
    scope = topology.memory().ptrace_scope
    facts = {"ptrace_scope": scope}
    value = secrets.randbits(64)
    word = ctypes.c_uint64(value)
    topology.allow_reading()
    code = "import sys; from torch_tent import _engine; " + (
        "print(_engine.probe_cma(*map(int, sys.argv[1:])), end='')"
    )
    arguments = [str(number) for number in (os.getpid(), ctypes.addressof(word), value)]
    # The child must find this package, wherever the user stands.
    path = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Finding(topic, "note", f"could not be tried: {error}", facts=facts)]
    why = done.stdout.strip() or (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode == 0 and not done.stdout:
        return [Finding(topic, "ok", "allowed", facts=facts)]
    advice = "memory that is not from tent.empty takes one more copy; to allow it: " + (
        "sysctl kernel.yama.ptrace_scope=0"
        if scope
        else "give the container CAP_SYS_PTRACE, or a seccomp profile with process_vm_readv"
    )
    return [Finding(topic, "note", f"refused: {why}", advice, facts)]


def _huge_pages(_: Settings) -> list[Finding]:
    memory = topology.memory()
    facts = dataclasses.asdict(memory)
    private, shared = memory.transparent_huge_pages, memory.shared_huge_pages
    text = f"private memory: {private or 'unknown'}, shared memory: {shared or 'unknown'}"
    if shared in ("advise", "always", "within_size", "force"):
        return [Finding("huge pages", "ok", text, facts=facts)]
    advice = "tent.empty is faster with them: as root, write advise to " + (
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
    )
    return [Finding("huge pages", "note", text, advice, facts)]


def _metrics(settings: Settings) -> list[Finding]:
    if settings.metrics_port is None:
        return [Finding("metrics", "ok", "off; TENT_METRICS_PORT=9464 would serve them")]
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        text = f"port {settings.metrics_port} is asked for, but prometheus_client is missing"
        return [Finding("metrics", "bad", text, "pip install 'torch_tent[metrics]'")]
    return [Finding("metrics", "ok", f"on port {settings.metrics_port}")]
