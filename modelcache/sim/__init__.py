"""The simulator: the production planner on thousands of nodes, in virtual time.

`simulate(Scenario(...))` runs it. What is real: every decision, for each node runs its own
`Planner`, and the cells it is in. What is modelled: the network (`network`), the origin
(`origin`), peers' answers (`serving`) and their announcements (`node`). What is left out: disks,
processors, TCP's start-up and losses.

A scenario, its seed included, and a commit reproduce a run exactly.
"""

from modelcache.sim.bounds import alone_s, bound_s, cells_bound_s, cells_of
from modelcache.sim.faults import Faults, Throttling
from modelcache.sim.outcome import NodeOutcome, Outcome
from modelcache.sim.scenario import GB, GBIT, ModelShape, NodeShape, OriginShape, Scenario, Way
from modelcache.sim.world import World, simulate

__all__ = [
    "GB",
    "GBIT",
    "Faults",
    "ModelShape",
    "NodeOutcome",
    "NodeShape",
    "OriginShape",
    "Outcome",
    "Scenario",
    "Throttling",
    "Way",
    "World",
    "alone_s",
    "bound_s",
    "cells_bound_s",
    "cells_of",
    "simulate",
]
