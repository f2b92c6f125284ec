"""What a source is: it resolves refs, and hands out what is needed to read one file.

A source never carries weights. It lists, pins and signs; the transfer engine opens the connections
and moves the bytes. Every source passes the same conformance suite (`tests/conformance`). The
methods may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from modelcache.domain.manifests import Checksum, File, Manifest
from modelcache.domain.refs import Ref
from modelcache.domain.targets import HttpTarget, LocalTarget, ProxyAddress, Target
from modelcache.errors import ModelcacheError

__all__ = ["HttpTarget", "LocalTarget", "ProxyAddress", "Source", "Target"]


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
