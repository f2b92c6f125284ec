"""Where and how bytes are read: what a source or a peer hands to the transfer engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ssl import SSLContext


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """An HTTP proxy. authorization: the value of Proxy-Authorization, never to be logged."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


class TlsIdentity(Protocol):
    """Who we are on TLS connections, and whom we expect. Compared by identity, hashable."""

    @property
    def server_name(self) -> str:
        """Name that the other's certificate must hold; empty for the host that was asked."""
        ...

    def client_context(self) -> SSLContext:
        """For the next connection: with the certificates as they are now.

        Raises SourceRefused when they cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """One signed GET, complete but for its Range header, which needs no signature.

    host: without brackets for IPv6. path: percent-encoded, with query. headers: in the order to
    send; Host is among them when the signature covers it. good_for_s: how long after `locate` the
    request may still be sent. ca_file: PEM bundle to trust instead of the system's. proxy: where
    to connect instead; plain requests name the whole URL then, TLS goes through a tunnel. window:
    where the file is a part of what the address holds, (offset of its first byte, size of all).
    identity: for servers that want to know who asks; before `ca_file`.
    """

    host: str
    port: int
    tls: bool
    path: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    good_for_s: float
    ca_file: str | None = None
    proxy: ProxyAddress | None = None
    window: tuple[int, int] | None = None
    identity: TlsIdentity | None = None


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """A file that this machine can open.

    share: a reflink may stand for a copy. link: so may a hard link.
    """

    path: str
    link: bool = False
    share: bool = True


Target = HttpTarget | LocalTarget
