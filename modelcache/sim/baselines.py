"""What the planner is compared with: two simple ways of choosing that drive the same nodes.

They are given more than they would have in the real world: they hear at once who has which chunk,
and pass on what nobody has vouched for yet.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Final, Protocol

from modelcache.domain.manifests import BlobId
from modelcache.planner import (
    Action,
    AttemptEnded,
    AttemptFailed,
    AttemptId,
    BatchStored,
    BlobsAdded,
    ChunkStored,
    Event,
    Fetch,
    Finish,
    Run,
    SourceId,
    TimerDue,
    Wake,
)

CONNECTIONS_DEFAULT: Final = 32  # of one node; more read more of the origin twice
RETRY_S: Final = 0.2

Wanted = tuple[BlobId, int]


class Choice(Protocol):
    """Chooses among chunks that are neither here nor on their way."""

    def add(self, wanted: list[Wanted]) -> None:
        """More chunks are wanted, or one that did not come."""
        ...

    def stored(self, wanted: Wanted) -> None:
        """A chunk is here."""
        ...

    def next(self) -> tuple[SourceId, Wanted] | None:
        """The next chunk, and who gives it."""
        ...


class Window:
    """Keeps a number of chunks on their way: a `Policy`, except for who is asked for what."""

    def __init__(self, choice: Choice, connections: int = CONNECTIONS_DEFAULT) -> None:
        self._choice = choice
        self._connections = connections
        self._left: dict[BlobId, int] = {}
        self._flying: dict[AttemptId, Wanted] = {}
        self._next = 0

    def handle(self, event: Event, now_s: float) -> list[Action]:  # noqa: C901 - a table
        """As `Planner.handle`."""
        match event:
            case BlobsAdded(blobs):
                for added in blobs:
                    self._left[added.blob] = added.grid.count
                    self._choice.add([(added.blob, chunk) for chunk in range(added.grid.count)])
            case ChunkStored(_, blob, chunk):
                return self._stored(blob, chunk)
            case BatchStored(_, small):
                for blob in small:
                    self._choice.stored((blob, 0))
            case AttemptEnded(attempt, _):
                del self._flying[attempt]
            case AttemptFailed(attempt, _, _):
                self._choice.add([self._flying.pop(attempt)])
                return [Wake(now_s + RETRY_S)]
            case TimerDue():
                pass
            case _:
                return []
        return self._launch()

    def _stored(self, blob: BlobId, chunk: int) -> list[Action]:
        self._choice.stored((blob, chunk))
        self._left[blob] -= 1
        return [] if self._left[blob] else [Finish(blob)]

    def _launch(self) -> list[Action]:
        actions: list[Action] = []
        while len(self._flying) < self._connections and (chosen := self._choice.next()):
            source, wanted = chosen
            attempt = AttemptId(self._next)
            self._next += 1
            self._flying[attempt] = wanted
            actions.append(Fetch(attempt, source, (Run(*wanted, 1),)))
        return actions


class FromSeed:
    """Everything from one node, in order."""

    def __init__(self, seed: SourceId) -> None:
        self._seed = seed
        self._pending: deque[Wanted] = deque()

    def add(self, wanted: list[Wanted]) -> None:
        """See `Choice`."""
        self._pending += wanted

    def stored(self, wanted: Wanted) -> None:
        """See `Choice`."""

    def next(self) -> tuple[SourceId, Wanted] | None:
        """See `Choice`."""
        return (self._seed, self._pending.popleft()) if self._pending else None


class Directory:
    """Who has which chunk: perfect knowledge, shared by all."""

    def __init__(self) -> None:
        self.holders: dict[Wanted, list[SourceId]] = {}

    def add(self, wanted: Wanted, source: SourceId) -> None:
        """A node has a chunk now."""
        self.holders.setdefault(wanted, []).append(source)


class RandomChoice:
    """Any missing chunk from any node that has it, or from the origin if none has."""

    def __init__(
        self, origin: SourceId, me: SourceId, directory: Directory, chance: random.Random
    ) -> None:
        self._origin = origin
        self._me = me
        self._directory = directory
        self._chance = chance
        self._pending: list[Wanted] = []

    def add(self, wanted: list[Wanted]) -> None:
        """See `Choice`."""
        self._pending += wanted

    def stored(self, wanted: Wanted) -> None:
        """See `Choice`."""
        self._directory.add(wanted, self._me)

    def next(self) -> tuple[SourceId, Wanted] | None:
        """See `Choice`."""
        if not self._pending:
            return None
        place = self._chance.randrange(len(self._pending))
        wanted = self._pending[place]
        self._pending[place] = self._pending[-1]
        self._pending.pop()
        holders = self._directory.holders.get(wanted)
        return (self._chance.choice(holders) if holders else self._origin), wanted
