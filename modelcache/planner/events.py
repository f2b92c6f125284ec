"""What the planner is told (events) and what it answers (actions): frozen values, nothing else.

An *attempt* is one worker reading one or more runs from one source over one connection. Its chunks
arrive in the order of its runs. Every attempt ends with exactly one of AttemptEnded and
AttemptFailed, also after a Cancel; a chunk is stored when its bytes are written and journalled.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NewType

from modelcache.domain.holdings import Holding
from modelcache.domain.manifests import BlobId
from modelcache.domain.members import NodeId
from modelcache.domain.ranges import ChunkGrid

AttemptId = NewType("AttemptId", int)
SourceId = NewType("SourceId", str)


_PEER: Final = "peer:"


UNKNOWN_PEER: Final = SourceId(_PEER)  # some peer of an earlier transfer


def peer_source(node: NodeId) -> SourceId:
    """What a peer is called among sources."""
    return SourceId(f"{_PEER}{node}")


def peer_of(source: SourceId) -> NodeId | None:
    """The node that a source stands for; None for an origin."""
    return NodeId(source[len(_PEER) :]) if source.startswith(_PEER) else None


class Remedy(StrEnum):
    """What a failed attempt calls for; the split of `modelcache.errors`, seen from a chunk."""

    RETRY = "retry"  # later, or elsewhere
    THROTTLED = "throttled"  # later, with fewer connections
    RENEW = "renew"  # at once, with a fresh signature or redirect
    CORRUPT = "corrupt"  # again, but not often: what stays wrong is wrong at the origin
    REFUSED = "refused"  # never again from this source
    NOT_YET = "not_yet"  # a peer that still fetches; nobody's fault
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
    sequence: and those of other blobs with them. relayed: those of `done` that came from peers, in
    an earlier transfer.
    """

    blob: BlobId
    grid: ChunkGrid
    sources: tuple[SourceId, ...]
    done: frozenset[int] = frozenset()
    ranges: bool = True
    in_order: bool = False
    sequence: InSequence | None = None
    relayed: frozenset[int] = frozenset()


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
class PeerTold:
    """A peer has said what it has of a blob; the newest word counts.

    source: `peer_source` of its node id.
    """

    source: SourceId
    holding: Holding


@dataclass(frozen=True, slots=True)
class PeerLeft:
    """A peer is gone, or wants to be: nothing more is asked of it."""

    source: SourceId


class Waiter(StrEnum):
    """Who wants a chunk before its turn."""

    PEER = "peer"  # expects it from us
    READER = "reader"  # waits for it on this node, whoever gives it
    SOON = "soon"  # a reader is about to want it: before all that nobody reads


@dataclass(frozen=True, slots=True)
class ChunkWanted:
    """Somebody waits for a chunk: it goes before what nobody waits for."""

    blob: BlobId
    chunk: int
    waiter: Waiter = Waiter.PEER


@dataclass(frozen=True, slots=True)
class ChunkAudited:
    """`attempt` has read a chunk again; `same`: it is what the store has.

    A chunk that was not the same as its origin's has been replaced. What a peer has replaces none.
    """

    attempt: AttemptId
    blob: BlobId
    chunk: int
    same: bool


@dataclass(frozen=True, slots=True)
class Doubted:
    """A blob is complete, but not what its origin says.

    chunks: those that may be at fault; none named: all of them.
    """

    blob: BlobId
    chunks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Paused:
    """Something more urgent needs the bandwidth (or no more): only what peers wait for goes on.

    fully: not even that, for it is not known yet who has what.
    """

    paused: bool
    fully: bool = False


@dataclass(frozen=True, slots=True)
class OriginCapped:
    """How many connections to origins this transfer may have; None for no cap.

    until_s: and no new request to them before that moment.
    """

    connections: int | None
    until_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TimerDue:
    """The moment asked for by a Wake has come (or may have: early and double ones are harmless)."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read these runs, in order, from this source.

    lanes: connections to use for a batch of small blobs; a run of chunks has one.
    hedge: the chunk is already on its way by another attempt; whoever is first stores it.
    renew: sign or follow the redirect anew first. serve: others may have what comes before all of
    the blob is here and verified, for it comes from who vouches for it. audit: the chunk is stored;
    read it into memory, and replace what the store has where that is something else. urgent: a
    reader waits for it; see Hasten.
    """

    attempt: AttemptId
    source: SourceId
    runs: tuple[Run, ...]
    lanes: int = 1
    hedge: bool = False
    renew: bool = False
    serve: bool = True
    audit: bool = False
    urgent: bool = False


@dataclass(frozen=True, slots=True)
class Hasten:
    """Somebody waits for what this attempt reads now: let it have the link."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class Curtail:
    """End this attempt after the chunk it is reading."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Nothing is asked of this peer before `until_s`: it fails, or (`lied`) gave wrong bytes."""

    source: SourceId
    until_s: float
    lied: bool


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell peers soon what is here and coming: it is something that they do not expect."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End this attempt; what it still had to bring is there already, or not wanted."""

    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class Forget:
    """Un-store these chunks of this blob; none named: every chunk.

    The bytes of a new attempt may not fit the old ones, or who gave them has lied.
    """

    blob: BlobId
    chunks: tuple[int, ...] = ()


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


SwarmEvent = PeerTold | PeerLeft | ChunkWanted | ChunkAudited | Doubted | Paused | OriginCapped
Event = (
    BlobsAdded
    | BlobDropped
    | ChunkStored
    | BatchStored
    | ChunksLost
    | AttemptEnded
    | AttemptFailed
    | SwarmEvent
    | TimerDue
)
Action = Fetch | Announce | Cancel | Curtail | Forget | Finish | GiveUp | Hasten | Quarantine | Wake
