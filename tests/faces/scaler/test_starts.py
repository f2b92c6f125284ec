"""How long starts took, as successive views of a cluster tell it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from modelcache.faces.controller.view import NodeView, view_of
from modelcache.faces.kubernetes.objects import now_text
from modelcache.faces.scaler.cluster import Server, View
from modelcache.faces.scaler.declared import Scale, scale_of
from modelcache.faces.scaler.facts import Meta, PodFacts
from modelcache.faces.scaler.starts import FRESH_S, Starts

NOW_S = 1_000_000.0
TOOK_S = 540.0
MODEL = "a" * 64


def scale_with(**spec: Any) -> Scale:
    """One of the model, with more in its spec."""
    return scale_of(
        {
            "metadata": {"name": "llama", "namespace": "default", "uid": "u", "generation": 1},
            "spec": {
                "model": MODEL,
                "selector": {"app": "llama"},
                "replica": {"gpus": 1, "requestsPerSecond": 2},
                **spec,
            },
        }
    )


@pytest.fixture
def scale() -> Scale:
    return scale_with()


def report(*, warm: bool) -> NodeView:
    model = {"modelId": MODEL, "percent": 100 if warm else 50}
    status = {"agent": {"ready": True}, "models": [model], "updatedAt": now_text()}
    return view_of({"metadata": {"name": "n1"}, "status": status})


def view(scale: Scale, pod: PodFacts, at_s: float, *, warm: bool) -> View:
    return View(
        at_s=at_s,
        scales={scale.key: scale},
        servers={scale.key: Server((pod,), MODEL, 1)},
        reports={"n1": report(warm=warm)},
    )


def begun(at_s: float) -> PodFacts:
    return PodFacts(Meta("default", "p", "1"), "p", {"app": "llama"}, node="n1", bound_s=at_s)


def watched(scale: Scale, *looks: tuple[float, bool]) -> Starts:
    """A start that took TOOK_S. looks: how long after its begin, and whether its node was warm."""
    starts, pod = Starts(), begun(NOW_S)
    for after_s, warm in looks:
        starts.look(view(scale, pod, NOW_S + after_s, warm=warm))
    ready = replace(pod, ready_s=NOW_S + TOOK_S)
    starts.look(view(scale, ready, NOW_S + TOOK_S, warm=True))
    return starts


def test_a_start_counts_by_what_its_node_had_at_its_begin(scale: Scale):
    cold = watched(scale, (1.0, False), (TOOK_S - 60, True)).seen(scale.key)
    assert (cold.warm, cold.cold) == ((), (TOOK_S,))
    warm = watched(scale, (1.0, True)).seen(scale.key)
    assert (warm.warm, warm.cold) == ((TOOK_S,), ())


def test_who_comes_in_the_middle_of_a_start_cannot_call_it_warm(scale: Scale):
    late = watched(scale, (FRESH_S + 1, True)).seen(scale.key)
    assert (late.warm, late.cold, late.abandoned) == ((), (), 0)
    cold = watched(scale, (FRESH_S + 1, False)).seen(scale.key)  # it was no warmer before
    assert (cold.warm, cold.cold) == ((), (TOOK_S,))


def test_a_start_that_is_given_up_counts_as_that_whoever_saw_its_begin(scale: Scale):
    starts, pod = Starts(), begun(NOW_S)
    starts.look(view(scale, pod, NOW_S + FRESH_S + 1, warm=True))
    starts.look(replace(view(scale, pod, NOW_S + 60, warm=True), servers={scale.key: Server()}))
    assert starts.seen(scale.key).abandoned == 1
