"""What this node answers to the others: ranges of blobs, what it has, and what refs mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from modelcache.agent.engine import Engine
from modelcache.agent.swarm.agreement import Agreement, to_message
from modelcache.agent.swarm.shelf import Shelf
from modelcache.domain.holdings import Holding
from modelcache.domain.manifests import BlobId, Manifest, ModelId
from modelcache.domain.members import NodeId
from modelcache.domain.places import Scheme
from modelcache.domain.ranges import ByteRange
from modelcache.domain.refs import Ref, parse_ref
from modelcache.errors import NotHeld, NotInStore, UsageError
from modelcache.peers.messages import Announcement, ResolveRequest
from modelcache.peers.shelf import Gone, Piece, never
from modelcache.sources.opening import open_source


class Say(Protocol):
    """Makes an announcement of this node."""

    def __call__(
        self, *, blobs: tuple[Holding, ...] = (), models: tuple[ModelId, ...] = ()
    ) -> Announcement:
        """blobs, models: what there is to say of."""
        ...


class Door:
    """What the peer plane's server asks; see `peers.server`. Thread-safe."""

    def __init__(
        self,
        engine: Engine,
        shelf: Shelf,
        agreement: Agreement,
        *,
        said: Say,
        heard: Callable[[Announcement], None],
    ) -> None:
        """said: makes this node's announcements. heard: takes those of others."""
        self._engine = engine
        self._shelf = shelf
        self._agreement = agreement
        self._said = said
        self._heard = heard

    def open(
        self,
        blob: BlobId,
        span: ByteRange,
        *,
        wait_s: float,
        priority: int,
        node: NodeId,
        gone: Gone = never,
    ) -> Piece:
        """A range of a blob. Waits for what is on its way. Raises NotHeld, NotYet."""
        del priority, node
        return self._shelf.open(blob, span, wait_s=wait_s, gone=gone)

    def announce(self, said: Announcement) -> Announcement:
        """Another node has said what it fetches; answer with what is here of that."""
        self._heard(said)
        held = (self._shelf.holding(holding.blob) for holding in said.blobs)
        store = self._engine.store
        return self._said(
            blobs=tuple(holding for holding in held if holding is not None),
            models=tuple(each for each in said.asked_models if store.snapshot_path(each)),
        )

    def resolve(self, asked: ResolveRequest) -> bytes:
        """What a ref means, for another node. Raises what its source raises, NotHeld."""
        ref = parse_ref(asked.ref)
        if ref.scheme is Scheme.FILE:
            raise UsageError("file:// means something else on every node")
        if asked.stale:
            return to_message(self._pulled_before(ref))
        origin = ref.origin()
        settings = self._engine.reach.settings_for(ref, tenants_only=asked.for_pods)
        manifest = self._agreement.answer(
            str(ref), lambda: open_source(origin, settings).resolve(ref)
        )
        return to_message(manifest)

    def _pulled_before(self, ref: Ref) -> Manifest:
        store = self._engine.store
        recalled = store.recall_ref(ref)
        if recalled is None or store.snapshot_path(recalled[0]) is None:
            raise NotHeld(f"{ref.redacted()} was not pulled here")
        try:
            return store.manifest(recalled[0])
        except NotInStore as error:
            raise NotHeld(f"{ref.redacted()} was not pulled here") from error
