"""Stage: benchmarks, in a player. perftest: what verbs alone can do between two ports.

One player starts server and client of a tool on each rail, all rails at once, and takes the tools'
own figures. They check no payload; the engine's columns do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import Any

from .base import Arm, Missing, Probe

MIB = 1 << 20  # what the tools call a MB
PORT = 18515
START_S = 10.0
RUN_S = 120.0
LEAST = 32  # messages; a case may ask for more
TOOLS = ("ib_write_bw", "ib_read_bw", "ib_write_lat", "ib_send_lat", "ib_read_lat")


@dataclass(frozen=True)
class Rail:
    """Two ports that reach each other: device and GID index of each, and the server's address."""

    client: str
    client_gid: int
    server: str
    server_gid: int
    address: str


class Rails(Probe):
    """One tool on some rails at a time. `case`: "bytes", "rails" (fields of Rail), and may have
    "least" (messages) and "sum". `half_trips`: how many a time is, of a tool that tells halves.

    What the tools on two rails reach together is their bytes over the time in which any of them was
    at work: on one processor they may run one after the other, each with all of it. "sum": the sum
    of their rates, where a rail is slow by itself and not for want of the processor.
    """

    def __init__(self, tool: str, case: dict[str, Any], half_trips: int = 1) -> None:
        super().__init__()
        self.tool, *self._words = tool.split()
        self._least = case.get("least", LEAST)
        self._sum = case.get("sum", False)
        self._half_trips = half_trips
        self.bytes = case["bytes"]
        self.rails = [Rail(**fields) for fields in case["rails"]]

    def run(self, times: int) -> dict[str, Any]:
        """Seconds as if one after the other: of half round trips, or at the rails' rate."""
        count = max(times, self._least)
        running = []
        try:
            for place, rail in enumerate(self.rails):
                running.append(self._start(place, rail.server, rail.server_gid, count))
            for place in range(len(self.rails)):
                wait_for_listener(PORT + place)
            clients = []
            for place, rail in enumerate(self.rails):
                found = self._start(place, rail.client, rail.client_gid, count, rail.address)
                running.append(found)
                clients.append(found)
            ends = wait_for_all(clients)
            figures = [
                figure(self.tool, *client.communicate(timeout=START_S)) for client in clients
            ]
            for one in running:
                one.wait(START_S)
        finally:
            for one in running:
                one.kill()
                one.communicate()
        if self.tool.endswith("_lat"):
            return {"seconds": figures[0] * 1e-6 * self._half_trips * times}
        if self._sum:
            return {"seconds": self.bytes * times / (sum(figures) * MIB)}
        took = [self.bytes * count / (rate * MIB) for rate in figures]
        busy = union_s([(end - lasted, end) for end, lasted in zip(ends, took, strict=True)])
        return {"seconds": busy * times / (count * len(clients))}

    def _start(
        self, place: int, device: str, gid: int, times: int, *address: str
    ) -> subprocess.Popen[str]:
        words = [self.tool, *self._words, "-d", device, "-x", str(gid), "-p", str(PORT + place)]
        words += ["-s", str(self.bytes), "-n", str(times), "-F"]
        words += [] if self.tool.endswith("_lat") else ["-N"]
        return subprocess.Popen(
            [*words, *address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )


def wait_for_all(clients: list[subprocess.Popen[str]]) -> list[float]:
    """When each of them ended. They say less than a pipe holds."""
    ends = [0.0] * len(clients)
    deadline = time.monotonic() + RUN_S
    while not all(ends):
        for place, client in enumerate(clients):
            if not ends[place] and client.poll() is not None:
                ends[place] = time.monotonic()
        if time.monotonic() > deadline:
            raise RuntimeError(f"a tool has not ended after {RUN_S:g} s")
        time.sleep(0.002)
    return ends


def union_s(spans: list[tuple[float, float]]) -> float:
    """The time that is in any of the spans."""
    total, covered = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, covered))
        covered = max(covered, end)
    return total


def wait_for_listener(port: int) -> None:
    """Returns when something listens on the port. Looks, and does not connect: the tool would take
    that for its client."""
    deadline = time.monotonic() + START_S
    wanted = f":{port:04X} "
    while time.monotonic() < deadline:
        for path in ("/proc/net/tcp", "/proc/net/tcp6"):
            with open(path) as lines:
                if any(wanted in line and line.split()[3] == "0A" for line in lines):
                    return
        time.sleep(0.01)
    raise RuntimeError(f"the server on port {port} did not start")


def figure(tool: str, text: str, _: Any) -> float:
    """MiB/s, or half a round trip in microseconds, out of a tool's table."""
    rows = re.findall(r"^ *\d+ +\d+ +(.+)$", text, re.MULTILINE)
    if not rows:
        raise RuntimeError(f"{tool} said: {text.strip()[-300:]}")
    numbers = [float(word) for word in rows[-1].split()]
    # Least, most, typical, average, ...; or peak (0 with -N), average, messages.
    return numbers[3] if tool.endswith("_lat") else numbers[1]


class PerftestArm(Arm):
    """The tools of the package perftest."""

    def __init__(self, seat: Any) -> None:
        super().__init__(seat)
        lacking = [tool for tool in TOOLS if shutil.which(tool) is None]
        if lacking:
            raise Missing(f"{', '.join(lacking)}: apt-get install perftest")

    def version(self) -> str:
        """The package's."""
        done = subprocess.run(["ib_write_bw", "--version"], capture_output=True, text=True)
        return f"perftest {(done.stdout + done.stderr).strip().splitlines()[0][-40:]}"

    def offer_write(self, case: dict[str, Any]) -> Probe:
        """ib_write_bw."""
        return Rails("ib_write_bw", case)

    def offer_read(self, case: dict[str, Any]) -> Probe:
        """ib_read_bw."""
        return Rails("ib_read_bw", case)

    def offer_latency(self, case: dict[str, Any]) -> Probe:
        """ib_write_lat: half a round trip, with both ends polling."""
        return Rails("ib_write_lat", case)

    def offer_message(self, case: dict[str, Any]) -> Probe:
        """ib_send_lat: half a round trip, with both ends asleep until a completion comes."""
        return Rails("ib_send_lat -e", case)

    def offer_message_and_answer(self, case: dict[str, Any]) -> Probe:
        """The same, there and back."""
        return Rails("ib_send_lat -e", case, half_trips=2)

    def offer_small_read(self, case: dict[str, Any]) -> Probe:
        """ib_read_lat, asleep until its completion comes; it tells whole reads."""
        return Rails("ib_read_lat -e", case)


ARM = PerftestArm
