"""Which of a node's transfers run, and how fast each may be: the urgent before the others.

A transfer is held back while one of a higher priority moves bytes. One that only waits (for its
origin's listing, for another process, for bytes that do not come) holds nobody back: bandwidth that
the urgent cannot use is not left lying. Limits are of classes: `(30, limit)` means that all
transfers of priorities up to 30 together take at most that, each the same part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NewType, assert_never

TransferId = NewType("TransferId", str)


@dataclass(frozen=True, slots=True)
class Started:
    """A transfer has begun, and moves nothing yet."""

    transfer: TransferId
    priority: int


@dataclass(frozen=True, slots=True)
class Moving:
    """A transfer gets bytes, or is about to."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class Waiting:
    """A transfer gets no bytes, for a reason that is not ours."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class PriorityChanged:
    """A transfer is wanted for another reason now."""

    transfer: TransferId
    priority: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A transfer is over, however it ended."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class Pause:
    """Hold a transfer back, after the chunks that are on their way."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class Resume:
    """Let a transfer go on."""

    transfer: TransferId


@dataclass(frozen=True, slots=True)
class Limit:
    """Hold a transfer to a rate; 0 means none."""

    transfer: TransferId
    bytes_s: int


ArbiterEvent = Started | Moving | Waiting | PriorityChanged | Ended
ArbiterAction = Pause | Resume | Limit


@dataclass(frozen=True, slots=True)
class _Known:
    """One transfer. paused, limit: what it was last told."""

    priority: int
    moving: bool = False
    paused: bool = False
    limit: int = 0


class Arbiter:
    """See the module. Events about transfers that are not known are left alone."""

    def __init__(self, limits: Sequence[tuple[int, int]] = ()) -> None:
        """limits: (highest priority, bytes a second), for all up to that priority together."""
        self._limits = sorted(limits)
        self._known: dict[TransferId, _Known] = {}

    def handle(self, event: ArbiterEvent) -> list[ArbiterAction]:
        """What has changed in consequence, in the order in which transfers began."""
        known = self._known
        match event:
            case Started(transfer, priority):
                known.setdefault(transfer, _Known(priority))
            case Ended(transfer):
                known.pop(transfer, None)
            case _ if event.transfer not in known:
                return []
            case Moving(transfer):
                known[transfer] = replace(known[transfer], moving=True)
            case Waiting(transfer):
                known[transfer] = replace(known[transfer], moving=False)
            case PriorityChanged(transfer, priority):
                known[transfer] = replace(known[transfer], priority=priority)
            case _:
                assert_never(event)
        return self._settled()

    def _settled(self) -> list[ArbiterAction]:
        """Bring every transfer to where it should be."""
        moving = [each.priority for each in self._known.values() if each.moving]
        highest = max(moving, default=0)
        actions: list[ArbiterAction] = []
        for transfer, known in self._known.items():
            paused = known.priority < highest
            if paused != known.paused:
                actions.append(Pause(transfer) if paused else Resume(transfer))
            limit = known.limit if paused else self._limit(known.priority, highest)
            if limit != known.limit:
                actions.append(Limit(transfer, limit))
            self._known[transfer] = replace(known, paused=paused, limit=limit)
        return actions

    def _limit(self, priority: int, highest: int) -> int:
        """Bytes a second of one that runs: its part of the narrowest class it is in."""
        parts = []
        for most, bytes_s in self._limits:
            if priority <= most:
                sharing = sum(
                    highest <= each.priority <= most and each.moving
                    for each in self._known.values()
                )
                parts.append(max(1, bytes_s // max(1, sharing)))
        return min(parts, default=0)
