"""Stage: api. What callers can catch. Every error of a transfer says peer, rail, path and cause.

Raised on the caller's thread. The data plane speaks in codes (`Code` in csrc/core/types.h);
`from_status` is the only place where they become exceptions. All errors can be pickled.
"""

from __future__ import annotations


class TentError(RuntimeError):
    """Everything that torch_tent raises by itself."""


class SettingsError(TentError, ValueError):
    """A setting that cannot be used: the message names it, its value, and what is accepted."""


class TicketError(TentError, ValueError):
    """Bytes that are not a ticket, or not one of this version."""


class TransferError(TentError):
    """A transfer ended without success.

    Attributes: `peer` (its name), `rail` (where it happened, if on one), `path` (why that path was
    taken), `cause` (what was wrong, in words). Each is "" where it is not known.
    """

    def __init__(
        self, message: str = "", *, peer: str = "", rail: str = "", path: str = "", cause: str = ""
    ) -> None:
        super().__init__(message)
        self.peer = peer
        self.rail = rail
        self.path = path
        self.cause = cause or message


class PeerLostError(TransferError):
    """The peer died, restarted, closed, or was not heard from for `peer_timeout_s`."""


class AccessError(TransferError):
    """The remote memory does not allow it: rights, bounds, a closed segment, a revoked block."""


class TransferTimeout(TransferError, TimeoutError):
    """The transfer's own timeout passed; its memory is not touched any more."""


class TransferCancelled(TransferError):
    """The transfer was cancelled; its memory is not touched any more."""


_BY_CODE: dict[int, type[TransferError]] = {
    1: TransferError,
    2: PeerLostError,
    3: AccessError,
    4: TransferTimeout,
    5: TransferCancelled,
    6: TransferError,
    7: TransferError,
}
_TEXT_BY_CODE = {
    1: "the transfer failed",
    2: "the peer is lost",
    3: "the remote memory does not allow this",
    4: "the transfer's timeout passed",
    5: "the transfer was cancelled",
    6: "the two ends disagree on bytes or dtype",
    7: "no rail that this transfer may use leads to the peer",
}


def from_status(
    code: int, text: str, rail: str = "", peer: str = "", path: str = ""
) -> TransferError:
    """The exception for an ended transfer's status.

    Args: `code` a value of `Code` in csrc/core/types.h except 0; the rest as in TransferError.
    Raises ValueError for code 0: success is no error.
    """
    if code == 0:
        raise ValueError("code 0 is success: there is no error to make of it")
    cause = text or _TEXT_BY_CODE.get(code, f"the transfer failed with code {code}")
    facts = [f"{name} {value}" for name, value in (("peer", peer), ("rail", rail)) if value]
    facts += [f"path: {path}"] if path else []
    message = f"{cause} ({', '.join(facts)})" if facts else cause
    kind = _BY_CODE.get(code, TransferError)
    return kind(message, peer=peer, rail=rail, path=path, cause=cause)
