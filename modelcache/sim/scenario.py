"""What is simulated: nodes, a model, an origin, and how the nodes go about it. Plain values.

Rates are bytes a second, in each direction of its own: networks are full duplex.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf
from typing import Final

from modelcache.domain.ranges import MIB
from modelcache.planner import PlannerLimits
from modelcache.sim.faults import Faults

GB: Final = 10**9
GBIT: Final = GB // 8


class Way(StrEnum):
    """How nodes get the model."""

    SWARM = "swarm"  # the planner, with its peers
    ALONE = "alone"  # the planner, without: every node reads the origin
    SINGLE_SEED = "single seed"  # one node reads the origin, all others read that node
    RANDOM = "random"  # any missing chunk from anybody who has it, as BitTorrent does at its start


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Large blobs of one size, and small ones. The defaults are 140 GB of weights."""

    blobs: int = 30
    blob_bytes: int = 4_666_666_667
    chunk_bytes: int = 128 * MIB
    """Larger than in production, where it is 16 MiB: an eighth of the events. It makes the first
    and the last seconds of a run coarser, not its rates."""
    small_blobs: int = 0
    small_blob_bytes: int = 64 << 10

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return self.blobs * self.blob_bytes + self.small_blobs * self.small_blob_bytes


@dataclass(frozen=True, slots=True)
class OriginShape:
    """An object store, seen from all nodes together."""

    rate: float = 100.0 * GBIT
    connection_rate: float = 0.4 * GBIT
    """What AWS's own client assumes of one connection to S3."""
    first_byte_s: float = 0.06


@dataclass(frozen=True, slots=True)
class NodeShape:
    """A node's network, and how far it is to its peers and to other zones."""

    up: float = 25.0 * GBIT
    down: float = 25.0 * GBIT
    round_trip_s: float = 0.0005
    zone_round_trip_s: float = 0.002


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. The same scenario always gives the same outcome."""

    nodes: int
    seed: int = 0
    way: Way = Way.SWARM
    model: ModelShape = field(default_factory=ModelShape)
    origin: OriginShape = field(default_factory=OriginShape)
    node: NodeShape = field(default_factory=NodeShape)
    faults: Faults = field(default_factory=Faults)
    limits: PlannerLimits = field(default_factory=PlannerLimits)
    zones: int = 1
    zone_rate: float = inf
    """Between one zone and all others, each way. Cells stay in their zone, so only the ways that
    are compared with the planner's need it."""
    holders: int = 0
    """Nodes that have the model before anybody starts."""
    start_spread_s: float = 0.5
    """Nodes start at moments drawn from so long."""
    uneven: float = 0.0
    """How unlike connections fare that share a link: standard deviation of the logarithm of what
    each of them gets for one chunk. With 0 all get the same."""
    uneven_nodes: float = 0.0
    """The same for what all connections of one node get of the origin, for the whole run."""
    refresh_s: float = 2.0
    """Nodes tell each other again what they have; 0 for only at the start and the end."""
    wait_s: float = 10.0
    """How long a peer may let a request wait for a chunk."""
    stall_s: float = 30.0
    """After which a connection without bytes counts as broken."""
    verify_s: float = 0.0
    """From a blob's last chunk to its being complete."""
    horizon_s: float = 100_000.0
    """A run that takes longer has failed."""

    @property
    def fetchers(self) -> int:
        """Nodes that want the model and do not have it yet."""
        return self.nodes - self.holders
