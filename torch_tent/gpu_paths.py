"""Stage: CLI. Which GPUs there are, which read each other's memory, and which RDMA devices move it,
for `doctor`, found out by asking and trying.

What always holds: without a driver nothing is tried; nothing stays open or allocated. Only the
trial of RDMA devices uses a GPU's context, and only where there are both. Each finding is (topic,
state, text, advice, facts) as in doctor.Finding.
"""

from __future__ import annotations

from pathlib import Path

from . import cuda
from .errors import SettingsError
from .hardware import Found
from .rdma_choice import chosen_ports
from .rdma_ports import PCI_ADDRESS, SYS, RdmaPort, rdma_ports
from .settings import Settings

PCI = Path("/sys/bus/pci/devices")
NEARNESS = ("the same PCIe switch", "the same NUMA node", "another NUMA node, or unknown")


def gpu_paths(
    settings: Settings, sys: Path = SYS, pci: Path = PCI, library: str = ""
) -> list[Found]:
    """A finding for CUDA IPC, and one for each GPU and RDMA device; none without a driver.

    `library`: the libibverbs to open, "" for the system's.
    """
    from . import _engine

    if cuda.why_not():
        return []
    gpus = list(range(_engine.cuda_device_count()))
    found = [_between(gpus, settings)]
    try:
        ports = chosen_ports(settings.rdma_devices, rdma_ports(sys))
    except SettingsError:  # Another finding says it.
        ports = []
    usable = [port for port in ports if not port.trouble and port.gids]
    if "rdma" in settings.transports:
        found += [f for gpu in gpus for f in _with_rdma(gpu, usable, pci, library)]
    return found


def _between(gpus: list[int], settings: Settings) -> Found:
    """Who reads whom, which is what cuda_ipc and require="nvlink" need."""
    from . import _engine

    topic = "GPU to GPU (cuda_ipc)"
    if "cuda_ipc" not in settings.transports:
        return (topic, "note", "off: cuda_ipc is not in TENT_TRANSPORTS", "", {})
    pairs = {(a, b): _engine.cuda_can_read(a, b) for a in gpus for b in gpus if a != b}
    facts = {f"cuda:{a} reads cuda:{b}": can for (a, b), can in pairs.items()}
    apart = sorted({tuple(sorted(pair)) for pair, can in pairs.items() if not can})
    if not apart:
        others = f"all of {len(gpus)} read each other" if pairs else "one, and its processes"
        return (topic, "ok", f"{others}; memory of expandable segments is left out", "", facts)
    names = ", ".join(f"cuda:{a} and cuda:{b}" for a, b in apart)
    advice = "it takes NVLink, or PCIe without an IOMMU or switch that forbids it (nvidia-smi topo)"
    return (topic, "note", f"no access, so through the host's memory: {names}", advice, facts)


def _with_rdma(gpu: int, ports: list[RdmaPort], pci: Path, library: str) -> list[Found]:
    """The devices, nearest first."""
    from . import _engine

    place = gpu_place(_engine.cuda_pci(gpu), pci)
    found: list[Found] = []
    for port in sorted(ports, key=lambda port: (nearness(place, port), port.name)):
        if any(topic.endswith(f"{port.device}") for topic, *_ in found):
            continue  # Another port of the same device.
        topic = f"GPUDirect RDMA cuda:{gpu}, {port.device}"
        near = NEARNESS[nearness(place, port)]
        gid = port.gids[0].index
        why = _engine.try_gpudirect(library, port.device, port.number, gid, gpu)
        facts = {"near": near, "why_not": why}
        if why:
            text, _, advice = why.partition(": it takes ")
            advice = f"it takes {advice}" if advice else "compare nvidia-smi topo -m"
            text = f"not used ({near}), bytes go through the host's memory: {text}"
            found.append((topic, "note", text, advice, facts))
        else:
            found.append((topic, "ok", f"works both ways ({near})", "", facts))
    return found


def gpu_place(address: str, pci: Path = PCI) -> tuple[tuple[str, ...], int]:
    """The PCI addresses from the root to the GPU, and its NUMA node; -1 where it is not known."""
    if not address:
        return (), -1
    device = pci / address.lower()
    try:
        node = int((device / "numa_node").read_text())
    except (OSError, ValueError):
        node = -1
    return tuple(PCI_ADDRESS.findall(str(device.resolve()))), node


def nearness(place: tuple[tuple[str, ...], int], port: RdmaPort) -> int:
    """How far an RDMA port is from a GPU: an index of NEARNESS, 0 the nearest.

    Devices behind one port of the root have a switch in common, or are one device.
    """
    path, node = place
    if path[:1] and path[:1] == port.pci_path[:1]:
        return 0
    return 1 if node >= 0 and node == port.numa_node else 2
