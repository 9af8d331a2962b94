"""Stage: api. One Prometheus endpoint per host for all engines of a user, whoever serves it.

Each engine writes its snapshot into a folder of the user's, once in PERIOD_S; the engine that holds
the lock (an abstract Unix socket, which the kernel frees when its process dies) serves all of them.
One thread per engine, "tent-metrics". What always holds: at most one engine serves; when it ends,
another one takes over within PERIOD_S; a snapshot that grows old is not shown.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import telemetry
from .errors import SettingsError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from .settings import Settings

PERIOD_S = 1.0
SHOWN_S = 10.0  # An engine that has not written for so long is stopped, or dead.
KEPT_S = 60.0

log = logging.getLogger("torch_tent")


class Exporter:
    """Offers one engine's counters, and those of all others on this host."""

    def __init__(
        self,
        settings: Settings,
        source: Callable[[], telemetry.Snapshot],
        period_s: float = PERIOD_S,
    ) -> None:
        """Starts the thread. Raises SettingsError when another program has the port."""
        if settings.metrics_port is None:
            raise SettingsError("metrics_port (TENT_METRICS_PORT) is not set")
        self._port = settings.metrics_port
        # Whoever asked for other hosts to connect may have other hosts look, too.
        self._address = "127.0.0.1" if settings.secret is None else "0.0.0.0"
        self._source = source
        self._period_s = period_s
        self._folder = snapshot_folder(self._port)
        self._path = self._folder / f"{os.getpid()}-{os.urandom(4).hex()}.json"
        self._lock: socket.socket | None = None
        self._server: Any = None
        self._stop = threading.Event()
        self._write()
        try:
            self._try_to_serve()
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise SettingsError(
                f"metrics_port (TENT_METRICS_PORT) = {self._port} cannot be served: "
                f"{error.strerror}; choose another one"
            ) from None
        self._thread = threading.Thread(target=self._run, name="tent-metrics", daemon=True)
        self._thread.start()

    @property
    def serves(self) -> bool:
        """Whether this engine is the one that answers Prometheus."""
        return self._server is not None

    def close(self) -> None:
        """Ends the thread and the endpoint; another engine takes over. Idempotent."""
        self._stop.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)
        if self._server is not None:
            server, thread = self._server
            self._server = None
            server.shutdown()
            server.server_close()
            thread.join()
        if self._lock is not None:
            self._lock.close()

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for each scrape, on the endpoint's thread."""
        with contextlib.suppress(RuntimeError):  # Our own engine is closing: the file will do.
            self._write()
        yield from telemetry.metrics(read_snapshots(self._folder))

    def _run(self) -> None:
        while not self._stop.wait(self._period_s):
            try:
                self._write()
                if self._server is None:
                    self._try_to_serve()
            except RuntimeError:
                return  # The engine is closed.
            except OSError as error:
                log.debug("metrics: %s", error)

    def _write(self) -> None:
        """Replaces the snapshot at once: a reader never sees half of it."""
        text = json.dumps(self._source())
        fresh = self._path.with_suffix(f".{threading.get_ident()}")
        fresh.write_text(text)
        fresh.replace(self._path)

    def _try_to_serve(self) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        if self._lock is None:
            lock = socket.socket(socket.AF_UNIX)
            try:
                lock.bind(f"\0torch_tent/metrics/{os.geteuid()}/{self._port}")
            except OSError:
                lock.close()
                return  # Another engine serves.
            self._lock = lock
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server = start_http_server(self._port, self._address, registry)
        except OSError:
            self._lock.close()
            self._lock = None
            raise


def snapshot_folder(port: int) -> Path:
    """Where the engines of this user that share a port write; made if it is missing.

    Raises SettingsError when somebody else made a folder of that name.
    """
    user = os.geteuid()
    runtime = Path(f"/run/user/{user}")
    base = runtime if os.access(runtime, os.W_OK) else Path(tempfile.gettempdir())
    folder = base / f"torch_tent-{user}-{port}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o077:
        raise SettingsError(f"{folder} is not a private folder of this user: remove it")
    return folder


def read_snapshots(folder: Path) -> list[telemetry.Snapshot]:
    """What the engines have written lately; removes what dead ones left."""
    found = []
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(OSError, ValueError):
            age_s = time.time() - path.stat().st_mtime
            if age_s < SHOWN_S:
                found.append(json.loads(path.read_text()))
            elif age_s > KEPT_S:
                path.unlink()
    return found
