"""Stage: control. An RDMA link during its handshake: both ends are made, joined, and prove with a
message each way that bytes cross between the two ports.

Called by the dialer and the listener on the control thread. What always holds: an end that did not
become a link is taken back; what is waited for has an end.
"""

from __future__ import annotations

import asyncio
import time

from .conversation import Stopped, Verdict
from .site import Site

LOOK_S = 0.001  # How often is looked for the greeting.


def open_end(site: Site, link: int, port: str) -> bytes:
    """Makes our end on one of our ports, for `drop` or the engine. Raises Stopped."""
    for own in site.ports:
        if own.name == port:
            try:
                return site.engine.rdma_open(link, own.port.device, own.port.number, own.gid_index)
            except RuntimeError as error:
                raise Stopped(Verdict.NO_END, str(error)) from None
    raise Stopped(Verdict.UNFIT, f"there is no RDMA port {port} here")


async def join(site: Site, link: int, endpoint: bytes, dialed: bool) -> None:
    """Joins our end with the peer's. Raises Stopped.

    By another thread: the kernel may ask the network for an address, for a second and more where
    nobody answers, and meanwhile others shake hands. Where this is cancelled, it ends with that.
    """
    loop = asyncio.get_running_loop()
    joining = loop.run_in_executor(None, site.engine.rdma_join, link, endpoint, dialed)
    try:
        await asyncio.shield(joining)
    except RuntimeError as error:
        raise Stopped(Verdict.NO_ROUTE, str(error)) from None
    except asyncio.CancelledError:
        await asyncio.gather(joining, return_exceptions=True)
        raise


async def greeted(site: Site, link: int, rail: str) -> None:
    """Returns when the peer's greeting has come over the new link. Raises Stopped."""
    until = time.monotonic() + site.step_timeout_s
    try:
        while not site.engine.rdma_greeted(link):
            if time.monotonic() > until:
                text = f"no byte crosses between the two ports ({rail}): see `doctor --rdma`"
                raise Stopped(Verdict.SILENT, text)
            await asyncio.sleep(LOOK_S)
    except RuntimeError as error:
        raise Stopped(Verdict.SILENT, str(error)) from None


def drop(site: Site, link: int) -> None:
    """Takes our end back; nothing happens where the engine is closed."""
    try:
        site.engine.rdma_drop(link)
    except RuntimeError:
        return
