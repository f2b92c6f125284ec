"""The transfers under way that peers know of, by the blobs they fetch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from modelcache.domain.holdings import Holding, HoldingState
from modelcache.domain.manifests import BlobId, Manifest, ModelId
from modelcache.domain.members import NodeId
from modelcache.domain.places import origin_name
from modelcache.planner import PeerLeft, PeerTold, peer_source
from modelcache.transfer.engine import Transfer
from modelcache.transfer.jobs import BlobJob


@dataclass(frozen=True, slots=True, eq=False)
class Sharing:
    """One transfer and what it fetches. Only large blobs are passed on while they come."""

    transfer: Transfer
    origin: str
    model_id: ModelId
    large: dict[BlobId, BlobJob]
    small: dict[BlobId, BlobJob]

    @classmethod
    def of(cls, transfer: Transfer, jobs: Sequence[BlobJob], manifest: Manifest) -> Sharing:
        """Of the jobs that can be had in ranges, or from who has all of them."""
        return cls(
            transfer,
            origin_name(jobs[0].source_id) if jobs else "",
            manifest.model_id,
            {job.file.blob: job for job in jobs if not job.small and job.file.ranges},
            {job.file.blob: job for job in jobs if job.small and job.file.size_bytes},
        )


class Active:
    """Thread-safe. Transfers are told of things outside the lock, in the order of coming."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sharing: list[Sharing] = []

    def add(self, sharing: Sharing) -> None:
        """A transfer knows its blobs now."""
        with self._lock:
            self._sharing.append(sharing)

    def remove(self, sharing: Sharing) -> None:
        """A transfer is over."""
        with self._lock:
            self._sharing.remove(sharing)

    def all(self) -> list[Sharing]:
        """The transfers under way."""
        with self._lock:
            return list(self._sharing)

    def job(self, blob: BlobId) -> tuple[Transfer, BlobJob] | None:
        """Who fetches a large blob here."""
        for sharing in self.all():
            job = sharing.large.get(blob)
            if job is not None:
                return sharing.transfer, job
        return None

    def holdings(self) -> tuple[Holding, ...]:
        """What others may ask for of all that is being fetched."""
        return tuple(job.holding() for sharing in self.all() for job in sharing.large.values())

    def models(self) -> tuple[ModelId, ...]:
        """What is being fetched."""
        return tuple(dict.fromkeys(sharing.model_id for sharing in self.all()))

    # News for the transfers

    def told(self, node: NodeId, holding: Holding) -> None:
        """A node has said what it has of a large blob."""
        for sharing in self.all():
            if holding.blob in sharing.large:
                sharing.transfer.tell(PeerTold(peer_source(node), holding))

    def has_model(self, node: NodeId, model_id: ModelId) -> None:
        """A node has all of a model: small blobs too can be had from it."""
        for sharing in self.all():
            if sharing.model_id == model_id:
                for blob, job in sharing.small.items():
                    holding = Holding(blob, HoldingState.COMPLETE, job.grid)
                    sharing.transfer.tell(PeerTold(peer_source(node), holding))

    def left(self, node: NodeId) -> None:
        """A node is gone, or wants to be left alone."""
        for sharing in self.all():
            sharing.transfer.tell(PeerLeft(peer_source(node)))
