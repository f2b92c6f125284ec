"""Every number the planner decides by, with the reason for its value."""

from __future__ import annotations

from dataclasses import dataclass

from modelcache.domain.ranges import MIB


@dataclass(frozen=True, slots=True)
class PlannerLimits:
    """Bounds and thresholds; times in seconds, sizes in bytes."""

    connections_start: int = 8
    """Attempts in flight before anything was measured: two batches of small blobs, and enough for a
    fast disk. It doubles every half second while that pays."""
    connections_max: int = 64
    """Most attempts in flight."""
    retries_max: int = 10
    """Failures of one chunk in a row before its blob is given up."""
    corrupt_rounds_max: int = 2
    """Times a whole blob is fetched again after its checksum failed: a third time is not chance."""

    batch_blob_bytes: int = 2 * MIB
    """Blobs up to this size travel in batches: their cost is the request, not the bytes."""
    batch_blobs_max: int = 128
    """Small blobs in one attempt: its connections run dry at the end of each, so not too few."""
    batch_bytes_max: int = 16 * MIB
    """Bytes in one attempt of small blobs: as much as a chunk, so that none becomes a straggler."""
    batch_weight: int = 4
    """Connections that a batch keeps busy from one thread, and counts for. Threads hand the
    interpreter to each other, which more lanes save; writes of files let go of it, which fewer
    lanes use: of 10,000 files on two processors, 8 lanes take a tenth longer and 2 as long."""
    run_chunks_max: int = 8
    """Chunks in one request: at 128 MiB a round trip is noise on any link."""
    run_overhead_share: float = 0.05
    """Longest share of a request that may pass before its first byte; else runs get longer."""

    backoff_first_s: float = 0.2
    backoff_max_s: float = 20.0
    """Exponential between the two, halved to full by jitter."""
    throttle_pause_s: float = 1.0
    """Pause after a 429 or SlowDown that did not say how long."""

    hedge_factor: float = 3.0
    """A chunk this many times slower than the 95th percentile of its kind is a straggler."""
    hedge_min_s: float = 1.0
    """Never hedge sooner: cheaper to wait."""
    hedge_unknown_s: float = 10.0
    """When to hedge with fewer than `hedge_samples_min` finished chunks to compare with."""
    hedge_unknown_peer_s: float = 30.0
    """The same for a peer that fetches itself: it may wait for its origin as long as we would."""
    hedge_samples_min: int = 4
    hedge_share: float = 0.05
    """Most bytes hedged, as a share of all bytes planned (and always one chunk)."""

    window_min_s: float = 0.5
    window_min_bytes: int = 20_000_000
    """Concurrency is judged only over windows of at least both (as hf-xet does)."""
    request_cost_bytes: int = 128 << 10
    """What a request weighs beside its bytes when throughput is judged, for small blobs."""

    peer_fetching_connections: int = 2
    """Requests at one peer that is fetching itself: one on its way, one waiting for what comes
    next. More would only make every chunk take longer until it can be passed on."""
    peer_complete_connections: int = 8
    """Most requests at one peer that has everything."""
    peers_share: float = 0.875
    """Of `connections_max`, what requests to peers may take; the rest is for origins."""
    gathering_s: float = 0.5
    """Nodes that are started together begin within about this: until then one chunk is enough."""
    seed_connections_min: int = 2
    """An origin is read by all that fetch, each with its part of the connections that one would
    have. But not with only one: what comes from peers on a dozen connections would leave it too
    little of the link, and what is read here is what all others wait for."""
    seed_connection_rate: float = 20e6
    """Bytes a second of each connection from which on a swarm's node opens more of them to a seed
    than its part. Nodes that share a seed's link get less as soon as there are a few of them; an
    object store gives each connection about 50 MB/s, however many."""
    seed_left_share: int = 4
    """Chunks on their way from a seed are at most a quarter of those still to be read from it: a
    chunk read alone arrives sooner than beside others, and everybody waits for the last ones."""
    ahead_min: int = 2
    ahead_share: float = 1 / 16
    """A node is ahead of another with so many chunks more, and this part of its share: then it
    reads on one connection, and with three times as many on none; one that is behind, on twice
    and four times as many."""
    take_over_share: float = 1 / 8
    """Of a node's share, what it reads for others beyond it, if these are no stragglers: what it
    reads it also sends to all of them."""
    take_over_every_s: float = 0.3
    """How often, while there is room at the seed."""
    not_yet_pause_s: float = 0.2
    """Pause before a peer is asked again that did not have a chunk yet and did not say how long."""
    check_every_s: float = 1.0
    """How often stragglers among peers are looked for while chunks wait."""
    steal_factor: float = 2.0
    """Work is taken over from a peer whose share will take this many times longer than a chunk
    takes from the origin."""
    straggler_factor: float = 2.0
    straggler_share: float = 0.5
    """And so many times longer than all peers together will take, and than this share of the time
    so far. Nodes that share an origin get uneven parts of it by chance: what one is ahead, others
    make good when it is done. To take over from them would only mean to give it to all others."""
    demote_factor: float = 8.0
    """A straggler that gives so many times less than peers usually do is asked for nothing more.
    One that has given nothing counts as if it had given a chunk, so that it takes nine of the
    others' to say so. Of eight nodes on busy processors one is soon four times behind by chance."""
    steal_after_s: float = 20.0
    """Before that nobody has had enough of anybody to say who is quicker."""
    steal_s: float = 10.0
    """And in no order, where peers would take longer than this, and so many times longer than
    origins alone. Less is the end of any transfer, where a guess is as good as another."""
    rate_memory_s: float = 5.0
    """Over which a peer's rate is averaged."""
    quarantine_first_s: float = 2.0
    quarantine_max_s: float = 60.0
    """A failing peer is left alone so long, doubling."""
    quarantine_lied_s: float = 600.0
    """And one that gave wrong bytes."""
