"""What the planner is told (events) and what it answers (actions): frozen values, nothing else.

An *attempt* is one worker reading one or more runs from one source over one connection. Its chunks
arrive in the order of its runs. Every attempt ends with exactly one of AttemptEnded and
AttemptFailed, also after a Cancel; a chunk is stored when its bytes are written and journalled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NewType

from modelcache.domain.manifests import BlobId
from modelcache.domain.ranges import ChunkGrid

AttemptId = NewType("AttemptId", int)
SourceId = NewType("SourceId", str)


class Remedy(StrEnum):
    """What a failed attempt calls for; the split of `modelcache.errors`, seen from a chunk."""

    RETRY = "retry"  # later, or elsewhere
    THROTTLED = "throttled"  # later, with fewer connections
    RENEW = "renew"  # at once, with a fresh signature or redirect
    CORRUPT = "corrupt"  # again, but not often: what stays wrong is wrong at the origin
    REFUSED = "refused"  # never again from this source
    CANCELLED = "cancelled"  # the planner asked for it; nobody's fault


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended early. `code` is an error's code, for reports."""

    remedy: Remedy
    code: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Chunks `[first, first + count)` of one blob, read by one request."""

    blob: BlobId
    first: int
    count: int

    @property
    def end(self) -> int:
        """One past the last chunk."""
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class InSequence:
    """Blobs that something consumes one behind the other, in the order in which they were added.

    name: the same for all of them. size_bytes: of all together, which decides when they come.
    """

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class BlobAdded:
    """One wanted blob. `done` are the chunks already stored; `sources` in order of preference.

    ranges: byte ranges can be asked for; otherwise one attempt reads all from the start.
    in_order: something consumes the bytes in order (SHA-256), so chunks far apart cost memory.
    sequence: and those of other blobs with them.
    """

    blob: BlobId
    grid: ChunkGrid
    sources: tuple[SourceId, ...]
    done: frozenset[int] = frozenset()
    ranges: bool = True
    in_order: bool = False
    sequence: InSequence | None = None


@dataclass(frozen=True, slots=True)
class BlobsAdded:
    """Blobs are wanted. Those of one model come together, or order could not be kept."""

    blobs: tuple[BlobAdded, ...]


@dataclass(frozen=True, slots=True)
class BlobDropped:
    """A blob is no longer wanted here (somebody else completed it)."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class ChunkStored:
    """`attempt` delivered a chunk and it is safe in the store."""

    attempt: AttemptId
    blob: BlobId
    chunk: int


@dataclass(frozen=True, slots=True)
class BatchStored:
    """`attempt` delivered these small blobs, checked and safe: nothing is left to do for them."""

    attempt: AttemptId
    blobs: tuple[BlobId, ...]


@dataclass(frozen=True, slots=True)
class ChunksLost:
    """Chunks that counted as stored are bad after all. Empty means: all of the blob's."""

    blob: BlobId
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt delivered all its runs. first_byte_s: from sending the request to its answer."""

    attempt: AttemptId
    first_byte_s: float


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt ended early; chunks it had stored stay stored.

    blob: the run at fault, where it was not the connection's.
    """

    attempt: AttemptId
    failure: Failure
    blob: BlobId | None = None


@dataclass(frozen=True, slots=True)
class TimerDue:
    """The moment asked for by a Wake has come (or may have: early and double ones are harmless)."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read these runs, in order, from this source.

    lanes: connections to use for a batch of small blobs; a run of chunks has one.
    hedge: the chunk is already on its way by another attempt; whoever is first stores it.
    renew: sign or follow the redirect anew first.
    """

    attempt: AttemptId
    source: SourceId
    runs: tuple[Run, ...]
    lanes: int = 1
    hedge: bool = False
    renew: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this attempt; what it still had to bring is there already, or not wanted."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class Forget:
    """Un-store every chunk of this blob: the bytes of a new attempt may not fit the old ones."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class Finish:
    """All chunks of this blob are stored: verify and publish it."""

    blob: BlobId


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The blob cannot be had; `failure` is the last reason."""

    blob: BlobId
    failure: Failure


@dataclass(frozen=True, slots=True)
class Wake:
    """Send TimerDue at `at_s`, or at any event after it. Replaces the Wake before it."""

    at_s: float


Event = (
    BlobsAdded
    | BlobDropped
    | ChunkStored
    | BatchStored
    | ChunksLost
    | AttemptEnded
    | AttemptFailed
    | TimerDue
)
Action = Fetch | Cancel | Forget | Finish | GiveUp | Wake
