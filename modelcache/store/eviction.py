"""Which models to evict when room is needed. Pure: numbers in, names out.

GreedyDual-Size (Cao and Irani, "Cost-Aware WWW Proxy Caching Algorithms", 1997) weighs an entry by
cost over size. Here the cost of an entry is the time to fetch it again, its size is what evicting
it would free, and its age takes the place of the algorithm's inflation: the model with the smallest

    refetch_s / (freed_bytes * age_s)

goes first, that is, the oldest and quickest to fetch again for the room it gives. A blob that
several models hold is freed by the last of them, so each is credited with its part of it; a blob
that a lease protects frees nothing. At the end those are spared, dearest first, without which
there is room enough as well.
"""

from __future__ import annotations

from collections import defaultdict
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

    What a lease protects is never named. Blobs that a leased model or `protected` holds count as
    freeing nothing. Nothing is named without need: leaving any one out frees less than is needed.
    """
    if need_bytes <= 0:
        return []
    shielded = frozenset(protected).union(*(item.blobs for item in candidates if item.leased))
    holders: dict[BlobId, int] = defaultdict(int)
    free: dict[ModelId, dict[BlobId, int]] = {}  # what each would free, or help to
    for item in candidates:
        if not item.leased:
            mine = {blob: size for blob, size in item.blobs.items() if blob not in shielded}
            if any(mine.values()):
                free[item.model_id] = mine
                for blob in mine:
                    holders[blob] += 1
    left = {item.model_id: item for item in candidates if item.model_id in free}
    chosen: list[ModelId] = []
    freed = 0
    while freed < need_bytes and left:
        _, model_id = min(
            (_keep_value(item, _share_bytes(free[model_id], holders), now_s), model_id)
            for model_id, item in left.items()
        )
        del left[model_id]
        chosen.append(model_id)
        freed += _take_out(free[model_id], holders)
    return _spare(chosen, free, holders, freed - need_bytes)


def freed_bytes(
    candidates: Sequence[Candidate], chosen: Iterable[ModelId], protected: Iterable[BlobId] = ()
) -> int:
    """What evicting `chosen` frees: the blobs that nobody else holds."""
    going = set(chosen)
    kept = set(protected)
    gone: dict[BlobId, int] = {}
    for item in candidates:
        if item.model_id in going:
            gone.update(item.blobs)
        else:
            kept.update(item.blobs)
    return sum(size for blob, size in gone.items() if blob not in kept)


def _spare(
    chosen: list[ModelId],
    free: Mapping[ModelId, Mapping[BlobId, int]],
    holders: dict[BlobId, int],
    surplus_bytes: int,
) -> list[ModelId]:
    """Leave out, the dearest first, whom the need can do without.

    surplus_bytes: freed beyond the need; when that is negative only those go whose going frees
    nothing at all are spared.
    """
    surplus = max(0, surplus_bytes)
    kept: list[ModelId] = []
    for model_id in reversed(chosen):
        back = sum(size for blob, size in free[model_id].items() if not holders[blob])
        if back <= surplus:
            surplus -= back
            for blob in free[model_id]:
                holders[blob] += 1
        else:
            kept.append(model_id)
    return kept[::-1]


def _take_out(blobs: Mapping[BlobId, int], holders: dict[BlobId, int]) -> int:
    """Remove one holder; returns the bytes of the blobs that have none left."""
    freed = 0
    for blob, size in blobs.items():
        holders[blob] -= 1
        if not holders[blob]:
            freed += size
    return freed


def _share_bytes(blobs: Mapping[BlobId, int], holders: Mapping[BlobId, int]) -> float:
    return sum(size / holders[blob] for blob, size in blobs.items())


def _keep_value(candidate: Candidate, freed_bytes: float, now_s: float) -> float:
    refetch_s = sum(candidate.blobs.values()) / max(1.0, candidate.rate_bytes_s)
    age_s = max(AGE_MIN_S, now_s - candidate.last_used_s)
    return refetch_s / (freed_bytes * age_s)
