"""What a source is: it resolves refs, and hands out what is needed to read one file.

A source never carries weights. It lists, pins and signs; the transfer engine opens the connections
and moves the bytes. Every source passes the same conformance suite (`tests/conformance`). The
methods may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from modelcache.domain.manifests import Checksum, File, Manifest
from modelcache.domain.refs import Ref
from modelcache.errors import ModelcacheError


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """An HTTP proxy. authorization: the value of Proxy-Authorization, never to be logged."""

    host: str
    port: int
    authorization: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """One signed GET, complete but for its Range header, which needs no signature.

    host: without brackets for IPv6. path: percent-encoded, with query. headers: in the order to
    send; Host is among them when the signature covers it. good_for_s: how long after `locate` the
    request may still be sent. ca_file: PEM bundle to trust instead of the system's. proxy: where
    to connect instead; plain requests name the whole URL then, TLS goes through a tunnel. window:
    where the file is a part of what the address holds, (offset of its first byte, size of all).
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


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """A file that this machine can open.

    share: a reflink may stand for a copy. link: so may a hard link.
    """

    path: str
    link: bool = False
    share: bool = True


Target = HttpTarget | LocalTarget


class Source(Protocol):
    """One origin, for the refs of one or two schemes."""

    def resolve(self, ref: Ref) -> Manifest:
        """List and pin every file that `ref` names and its filter accepts.

        Idempotent; no bytes of weights are read. A ref to one file gives one entry named by the
        last path component; a ref to a prefix gives paths relative to it. The manifest's archives
        still have to be unpacked. Raises SourceUnavailable (worth repeating), NotFound (also for an
        empty match), Forbidden, NoCredentials, UnsafePath.
        """
        ...

    def locate(self, file: File, *, fresh: bool = False) -> Target:
        """Where and how to read `file`, pinned: the origin refuses if the object has changed.

        Cheap enough to call once per small file; `fresh` discards what was cached (an expired
        redirect or signature). Raises as `resolve` does.
        """
        ...

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """Compare a response's validators with the pin; header names are lower-case.

        Some servers ignore preconditions, so every response is checked. Raises OriginChanged.
        """
        ...

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """Checksums of the whole file published on a whole-file response, beyond the manifest's."""
        ...

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """Translate an unsuccessful response (body: its first 64 KiB at most) into an error.

        Throttled for 429 and SlowDown with Retry-After in seconds, CredentialsExpired where signing
        again may help, OriginChanged for 412, NotFound, Forbidden, else SourceUnavailable.
        """
        ...
