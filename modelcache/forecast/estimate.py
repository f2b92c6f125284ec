"""When a model would be ready on a node: the time of each part, from what is missing and how fast.

    ready = resolve + (ahead + missing) / rate + finish + mount
    rate  = min(disk, network)

which is ServerlessLLM's q + n/b (arXiv 2401.14351) with a network before the disk. What the
network gives depends on who has the model and who fetches it at the same time (`Regime`).
The result is one number, the usual case. How far truth is from it `calibration` knows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from enum import StrEnum
from statistics import median
from typing import Final

TYPICAL_MAX: Final = 32
"""Values that a typical duration rests on: a changed origin is another one after a dozen starts."""
RESOLVE_S: Final = 0.3  # a listing and an announcement; until the first start has told
FINISH_S: Final = 0.2  # checksums, links, a sync; likewise
MOUNT_S: Final = 0.05  # three system calls, and the driver's way to them


class Tier(StrEnum):
    """How much of a model a node has when a start begins."""

    WARM = "warm"
    WARMING = "warming"
    COLD = "cold"


class Regime(StrEnum):
    """From whom the missing bytes come: starts are alike where that is the same."""

    ALONE = "alone"  # the origin
    TOGETHER = "together"  # the origin, and other nodes that fetch it too
    HELD = "held"  # a node that has all of it
    CROWDED = "crowded"  # the same, while others are fetching too, and share what it gives


@dataclass(frozen=True, slots=True)
class Queued:
    """Another model that is fetched on the node. left_bytes: what of it is still to come."""

    left_bytes: int
    priority: int


@dataclass(frozen=True, slots=True)
class Needs:
    """One model on one node. ahead_bytes: see `ahead_of`.

    holders: other nodes of the cell that have all of it. fetchers: those that fetch it now. busy:
    those that fetch anything now.
    resolved: whether it is known already what its ref means, so that nothing has to be asked.
    """

    size_bytes: int
    missing_bytes: int
    ahead_bytes: int = 0
    holders: int = 0
    fetchers: int = 0
    busy: int = 0
    resolved: bool = False

    @property
    def tier(self) -> Tier:
        """How much is here."""
        if self.missing_bytes <= 0:
            return Tier.WARM
        return Tier.COLD if self.missing_bytes >= self.size_bytes else Tier.WARMING

    @property
    def regime(self) -> Regime:
        """From whom it comes."""
        if self.holders:
            return Regime.CROWDED if self.fetchers or self.busy else Regime.HELD
        return Regime.TOGETHER if self.fetchers else Regime.ALONE


@dataclass(frozen=True, slots=True)
class Speeds:
    """What is known, or declared, of how fast things are; None for nothing.

    mixed_bytes_s: from an origin and peers at once. load_bytes_s: from the page cache or disk into
    the memory where the model runs. finish_s: all of a start that is neither resolving nor bytes
    at the usual rate.
    """

    origin_bytes_s: float | None = None
    peer_bytes_s: float | None = None
    mixed_bytes_s: float | None = None
    disk_bytes_s: float | None = None
    load_bytes_s: float | None = None
    resolve_s: float | None = None
    finish_s: float | None = None
    mount_s: float | None = None

    def or_else(self, declared: Speeds) -> Speeds:
        """What was measured, and what is declared where nothing was."""
        return Speeds(
            **{
                item.name: own if own is not None else getattr(declared, item.name)
                for item in fields(self)
                for own in (getattr(self, item.name),)
            }
        )


@dataclass(frozen=True, slots=True)
class Parts:
    """Seconds of each part of a start. load_s: None where nobody has said how fast that is."""

    queue_s: float
    resolve_s: float
    fetch_s: float
    finish_s: float
    mount_s: float
    load_s: float | None

    @property
    def stored_s(self) -> float:
        """Until the node has all of the model: what starts are judged by."""
        return self.queue_s + self.resolve_s + self.fetch_s + self.finish_s

    @property
    def ready_s(self) -> float:
        """Until a pod can read it."""
        return self.stored_s + self.mount_s

    def loaded_s(self, chunk_s: float | None = None) -> float | None:
        """Until it is in memory. chunk_s: the time of one chunk, where it is loaded while it comes.

        Then what is slower sets the pace, and the last chunk is loaded when it has come.
        """
        if self.load_s is None:
            return None
        if chunk_s is None:
            return self.ready_s + self.load_s
        flowing_s = max(self.fetch_s, self.load_s) + chunk_s
        return self.queue_s + self.resolve_s + flowing_s + self.mount_s


def ahead_of(needed_bytes: int, priority: int, others: Iterable[Queued], *, at_once: int) -> int:
    """Bytes of other models that come before the last byte of one that needs so many.

    Of what is more urgent all; what is as urgent shares the links, so that no more of it comes
    than of this one, unless so many are fetched already (`at_once`) that this one waits.
    """
    others = [each for each in others if each.priority >= priority and each.left_bytes > 0]
    waits = len(others) >= at_once
    return sum(
        each.left_bytes if waits or each.priority > priority else min(each.left_bytes, needed_bytes)
        for each in others
    )


def network_s(needs: Needs, speeds: Speeds) -> float | None:
    """Seconds that the network takes for the missing bytes; None where its speed is unknown.

    As fast as it was in a like case. If nodes have never fetched together here: each of n reads its
    own share from the origin and has the others' shares from them, both at once over its own link,
    and the slowest of the three sets the pace.
    """
    origin, peers, mixed = speeds.origin_bytes_s, speeds.peer_bytes_s, speeds.mixed_bytes_s
    missing = needs.missing_bytes
    if needs.regime is Regime.TOGETHER and not mixed and origin:
        own, theirs = missing / (needs.fetchers + 1), peers or origin
        link = max(origin, theirs)  # both come over it, and it was never seen faster
        return max(own / origin, (missing - own) / theirs, missing / link)
    like = {
        Regime.HELD: peers or mixed or origin,  # a cell is seldom slower than an origin
        Regime.CROWDED: peers or mixed or origin,
        Regime.TOGETHER: mixed or peers,
        Regime.ALONE: origin or mixed,
    }
    rate = like[needs.regime]
    return missing / rate if rate else None


def parts_of(needs: Needs, speeds: Speeds) -> Parts | None:
    """The parts of a start; None where nobody knows how fast the missing bytes come."""
    fetch_s = queue_s = 0.0
    if needs.missing_bytes > 0:
        network = network_s(needs, speeds)
        if network is None:
            return None
        disk_s = needs.missing_bytes / speeds.disk_bytes_s if speeds.disk_bytes_s else 0.0
        fetch_s = max(network, disk_s)
        queue_s = fetch_s * needs.ahead_bytes / needs.missing_bytes
    return Parts(
        queue_s=queue_s,
        resolve_s=0.0 if needs.resolved else _known(speeds.resolve_s, RESOLVE_S),
        fetch_s=fetch_s,
        finish_s=_known(speeds.finish_s, FINISH_S) if needs.missing_bytes > 0 else 0.0,
        mount_s=_known(speeds.mount_s, MOUNT_S),
        load_s=needs.size_bytes / speeds.load_bytes_s if speeds.load_bytes_s else None,
    )


def typical(values: Iterable[float]) -> float | None:
    """The middle of the last values; None for none."""
    last = list(values)[-TYPICAL_MAX:]
    return median(last) if last else None


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
