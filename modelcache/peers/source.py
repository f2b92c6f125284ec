"""A peer, as the transfer engine reads from it: a source that has blobs and knows no refs.

It keeps nothing of a request: an answer's signature names the time of the request it is for, so
any PeerSource for the same peer can check it. It satisfies `sources.source.Source`, of which this
package knows nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from modelcache.domain.manifests import Checksum, File, Manifest
from modelcache.domain.members import Member, NodeId
from modelcache.domain.refs import Ref
from modelcache.domain.targets import HttpTarget
from modelcache.errors import ModelcacheError, SourceUnavailable, UsageError
from modelcache.peers.answers import error_of
from modelcache.peers.auth import PeerAuth, not_a_peer
from modelcache.peers.requests import BLOBS_PATH, HASHES, PRIORITY_UNSAID
from modelcache.peers.signing import Scope, answer_to

WAIT_S_MAX: Final = 3600.0  # whatever the settings say: what can be written in a header
_HASHES: Final = re.compile(r"[0-9a-f]{32}(,[0-9a-f]{32})*")


class PeerSource:
    """Cheap to make, immutable."""

    __slots__ = ("_auth", "_me", "_member", "_node", "_priority", "_wait_s", "_where")

    def __init__(
        self,
        member: Member,
        node: NodeId,
        auth: PeerAuth,
        *,
        me: NodeId,
        wait_s: float,
        priority: int = PRIORITY_UNSAID,
    ) -> None:
        """node: whom `member` stands for. me: who asks. wait_s: for chunks that are on their way.

        priority: how urgent it is, 0 to 100.
        """
        self._member = member
        self._auth = auth
        self._me = me
        self._node = node
        self._wait_s = min(wait_s, WAIT_S_MAX)
        self._priority = priority
        self._where = f"node {node} ({member.address})"

    def resolve(self, ref: Ref) -> Manifest:
        """Peers are asked with `PeerClient.resolve`. Raises UsageError."""
        raise UsageError(f"{self._where} is a peer; it cannot be asked for {ref.redacted()} here")

    def locate(self, file: File, *, fresh: bool = False) -> HttpTarget:
        """The request for a blob, signed anew each time."""
        del fresh
        scope = self._scope(file)
        return HttpTarget(
            self._member.host,
            self._member.port,
            self._auth.tls is not None,
            scope.path,
            (
                ("X-Modelcache-Node", self._me),
                ("X-Modelcache-Wait", f"{self._wait_s:.3f}"),
                ("X-Modelcache-Priority", str(self._priority)),
                *self._auth.sign(scope),
            ),
            self._auth.good_for_s,
            identity=self._auth.tls,
        )

    def check_pin(self, file: File, headers: Mapping[str, str]) -> None:
        """Blobs are named by what they hold: all there is to check is who has answered.

        Raises Forbidden if that was no node of the cluster.
        """
        placed = headers.get("content-range")
        if placed is None:  # the whole blob
            size = headers.get("content-length", "")
            said = answer_to(
                200,
                content_range=f"bytes 0-{file.size_bytes - 1}/{size}",
                hashes=headers.get(HASHES, ""),
            )
        else:
            said = answer_to(206, content_range=placed, hashes=headers.get(HASHES, ""))
        if not self._auth.answered(self._scope(file), headers, said):
            raise not_a_peer(self._where)

    def checksums(self, file: File, headers: Mapping[str, str]) -> tuple[Checksum, ...]:
        """None: a peer cannot speak for the origin."""
        del file, headers
        return ()

    def promised(self, headers: Mapping[str, str]) -> tuple[bytes, ...]:
        """XXH3-128 of each chunk of an answer; none where its range is not cut at chunks.

        Raises SourceUnavailable for what cannot be read.
        """
        text = headers.get(HASHES)
        if not text:
            return ()
        if not _HASHES.fullmatch(text):
            raise SourceUnavailable(f"{self._where} sent hashes that cannot be read")
        return tuple(bytes.fromhex(each) for each in text.split(","))

    def refusal(
        self, file: File, status: int, headers: Mapping[str, str], body: bytes
    ) -> ModelcacheError:
        """NotHeld, NotYet, Throttled, Forbidden, SourceUnavailable: somebody else may have it."""
        del file
        return error_of(self._where, status, headers, body)

    def _scope(self, file: File) -> Scope:
        return Scope("GET", f"{BLOBS_PATH}{file.blob}", self._me, self._node)
