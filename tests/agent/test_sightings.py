"""What a node remembers of who has what."""

from __future__ import annotations

from modelcache.agent.swarm.sightings import (
    ASK_EVERY_S,
    FETCHES_S,
    HOLDS_S,
    MODELS_MAX,
    Sightings,
)
from modelcache.domain.holdings import Holding, HoldingState
from modelcache.domain.manifests import BlobId, ModelId
from modelcache.domain.members import Member, NodeId
from modelcache.domain.ranges import MIB, ChunkGrid
from modelcache.peers.messages import Announcement

MODEL, OTHER = ModelId("a" * 64), ModelId("b" * 64)
HOLDING = Holding(BlobId("x"), HoldingState.FETCHING, ChunkGrid(64 * MIB, 16 * MIB))


def said(node: str, **more) -> Announcement:
    return Announcement(NodeId(node), Member("10.0.0.1", 9871), **more)


def test_holders_and_fetchers_are_told_apart_and_forgotten_in_time():
    seen = Sightings()
    seen.heard(said("a", models=(MODEL,)), 0.0, asked=True)
    seen.heard(said("b", blobs=(HOLDING,), asked_models=(MODEL,)), 0.0, asked=False)
    assert seen.who(MODEL, 1.0) == {"a": True, "b": False}
    assert seen.who(OTHER, 1.0) == {}
    assert seen.who(MODEL, FETCHES_S + 1) == {"a": True}
    assert seen.who(MODEL, HOLDS_S + 1) == {}
    seen.heard(said("b", models=(MODEL,)), 2.0, asked=False)
    assert seen.who(MODEL, 2.0) == {"a": True, "b": True}


def test_a_node_that_leaves_has_nothing():
    seen = Sightings()
    seen.heard(said("a", models=(MODEL,)), 0.0, asked=True)
    seen.heard(said("a", leaving=True), 1.0, asked=False)
    assert seen.who(MODEL, 1.0) == {}


def test_who_is_busy_follows_what_nodes_tell_and_not_what_they_answer():
    seen = Sightings()
    seen.heard(said("b", blobs=(HOLDING,), asked_models=(OTHER,)), 0.0, asked=False)
    seen.heard(said("b"), 1.0, asked=True)  # it was asked about something else
    assert seen.busy(1.0) == 1
    assert seen.busy(FETCHES_S + 1) == 0
    seen.heard(said("b"), 2.0, asked=False)  # its farewell
    assert seen.busy(2.0) == 0


def test_a_model_is_asked_about_now_and_then_and_memory_is_bounded():
    seen = Sightings()
    assert seen.to_ask(MODEL, 0.0)
    assert not seen.to_ask(MODEL, ASK_EVERY_S / 2)
    assert seen.to_ask(MODEL, ASK_EVERY_S + 0.1)
    for number in range(MODELS_MAX + 10):
        seen.heard(said("a", models=(ModelId(f"{number:064x}"),)), 0.0, asked=True)
        seen.to_ask(ModelId(f"{number:064x}"), 0.0)
    assert len(seen._seen) == len(seen._asked) == MODELS_MAX
