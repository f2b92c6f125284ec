"""What came of a run. Plain values, equal for equal scenarios."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean, quantiles


@dataclass(frozen=True, slots=True)
class NodeOutcome:
    """One node that fetched. Bytes include those of chunks that did not come whole."""

    name: str
    cell: int
    started_s: float
    ready_s: float | None
    """When it had everything; None if it died before, or gave up."""
    dead: bool
    straggler: bool
    from_origin: float
    from_peers: float
    sent: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run. Times from its beginning, in seconds."""

    nodes: tuple[NodeOutcome, ...]
    sent_by_holders: float
    wasted_bytes: float
    hedges: int
    audits: int
    quarantines: int
    lies_found: int
    requests_at_origin: int
    refused_by_origin: int
    failures: dict[str, int] = field(default_factory=dict)
    """Of attempts, by code."""
    gave_up: dict[str, str] = field(default_factory=dict)
    """Nodes that could not get everything, and why."""
    events: int = 0
    """Of the clock."""
    planned: int = 0
    """Events that planners were told."""

    @property
    def last_s(self) -> float:
        """When the last living node had everything."""
        return max(node.ready_s for node in self.nodes if node.ready_s is not None)

    @property
    def last_quick_s(self) -> float:
        """The same without those that are slow themselves: nobody can help them."""
        return max(
            node.ready_s for node in self.nodes if node.ready_s is not None and not node.straggler
        )

    @property
    def mean_s(self) -> float:
        """When nodes had everything, on average; late ones from their start."""
        return mean(
            node.ready_s - node.started_s for node in self.nodes if node.ready_s is not None
        )

    @property
    def origin_bytes(self) -> float:
        """Read from the origin by all nodes."""
        return sum(node.from_origin for node in self.nodes)

    def origin_by_cell(self) -> tuple[float, ...]:
        """The same for each cell."""
        cells: dict[int, float] = {}
        for node in self.nodes:
            cells[node.cell] = cells.get(node.cell, 0.0) + node.from_origin
        return tuple(cells[cell] for cell in sorted(cells))

    def sent_spread(self) -> tuple[float, float, float]:
        """Bytes that nodes sent: the tenth, the median, the ninetieth percentile."""
        sent = [node.sent for node in self.nodes]
        if len(sent) < 2:  # noqa: PLR2004 - quantiles need two
            return sent[0], sent[0], sent[0]
        tenths = quantiles(sent, n=10, method="inclusive")
        return tenths[0], tenths[4], tenths[8]

    def whole(self) -> bool:
        """Every node that lived has everything."""
        return all(node.dead or node.ready_s is not None for node in self.nodes)
