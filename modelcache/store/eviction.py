"""Which models to evict when room is needed. Pure: numbers in, names out.

GreedyDual-Size (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", 1997) weighs an entry by
cost over size. Here the cost of an entry is the time to fetch it again, its size is what evicting
it would free now (blobs that others hold free nothing), and its age takes the place of the
algorithm's inflation: the model with the smallest

    refetch_s / (freed_bytes * age_s)

goes first, that is, the oldest and quickest to fetch again for the room it gives. After each
choice the freed bytes of the rest are counted anew: the last holder of a shared blob frees it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelcache.domain.manifests import BlobId, ModelId

AGE_MIN_S: Final = 1.0  # a model used this instant is not infinitely dear


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that might go. blobs: sizes in bytes of its blobs that are on this node.

    rate_bytes_s: how fast its origin delivered when it was last fetched.
    """

    model_id: ModelId
    blobs: Mapping[BlobId, int]
    last_used_s: float
    rate_bytes_s: float
    leased: bool


def plan(
    candidates: Sequence[Candidate],
    *,
    need_bytes: int,
    now_s: float,
    protected: Iterable[BlobId] = (),
) -> list[ModelId]:
    """Models to evict, in order, so that at least `need_bytes` become free, or as many as may go.

    What a lease protects is never named; blobs that a leased model or `protected` holds count as
    freeing nothing, and a model that would free nothing is never named.
    """
    holders = Counter(blob for candidate in candidates for blob in candidate.blobs)
    holders.update(protected)
    left = [candidate for candidate in candidates if not candidate.leased]
    chosen: list[ModelId] = []
    freed = 0
    while freed < need_bytes:
        worth = [
            (_keep_value(candidate, gain, now_s), candidate.model_id, gain, candidate)
            for candidate in left
            if (gain := _freed_bytes(candidate, holders)) > 0
        ]
        if not worth:
            break
        _, model_id, gain, candidate = min(worth, key=lambda item: item[:2])
        chosen.append(model_id)
        freed += gain
        holders.subtract(candidate.blobs.keys())
        left.remove(candidate)
    return chosen


def _freed_bytes(candidate: Candidate, holders: Mapping[BlobId, int]) -> int:
    return sum(size for blob, size in candidate.blobs.items() if holders[blob] == 1)


def _keep_value(candidate: Candidate, freed_bytes: int, now_s: float) -> float:
    refetch_s = sum(candidate.blobs.values()) / max(1.0, candidate.rate_bytes_s)
    age_s = max(AGE_MIN_S, now_s - candidate.last_used_s)
    return refetch_s / (freed_bytes * age_s)
