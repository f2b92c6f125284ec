"""When a new node may take pods: it has what is declared, or has waited long enough."""

from dataclasses import replace

import pytest

from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import wanted_id
from modelcache.faces.controller.startup import NO_AGENT_S, held_by, is_free
from modelcache.faces.controller.view import view_of
from modelcache.faces.kubernetes.objects import now_text, seconds_of
from modelcache.faces.watcher.prefetches import declared

REF = "s3://models/llama"
NOW = now_text()
NOW_S = seconds_of(NOW)
LABELS = {"pool": "gpu"}


def wish(**spec):
    metadata = {"name": "pool", "creationTimestamp": NOW}
    return declared({"metadata": metadata, "spec": {"refs": [REF], "holdNodes": True, **spec}})


def view(percent, *, ready=True):
    model = {"ref": REF, "wantedId": wanted_id(parse_ref(REF)), "percent": percent}
    status = {"agent": {"ready": ready}, "models": [model], "updatedAt": NOW}
    return view_of({"metadata": {"name": "n"}, "status": status})


def free(view_, *wishes, age_s=1.0, labels=LABELS):
    return is_free(view_, labels, wishes, age_s=age_s, now_s=NOW_S)


def test_it_waits_for_its_agent_and_for_what_is_declared():
    assert free(None, wish()) is None
    assert free(view(100, ready=False), wish()) is None
    assert free(view(99), wish()) is None
    assert free(view(100), wish()) == "all is warm"
    assert free(view(0)) == "all is warm"
    assert free(view(0), wish(holdNodes=False)) == "all is warm"


def test_what_is_meant_for_other_nodes_or_suspended_holds_nobody():
    assert free(view(0), wish(nodeSelector={"pool": "cpu"}))
    assert free(view(0), wish(nodeSelector={"pool": "gpu"})) is None
    assert free(view(0), wish(suspend=True))


def test_no_wait_is_for_ever():
    assert free(view(0), wish(), age_s=599) is None
    assert "too long" in (free(view(0), wish(), age_s=600) or "")
    assert free(view(0), wish(holdTimeout="30m"), age_s=600) is None
    assert free(None, age_s=NO_AGENT_S - 1) is None
    assert "no agent" in (free(None, age_s=NO_AGENT_S) or "")


def test_an_agent_that_has_fallen_silent_counts_as_none():
    silent = replace(view(100), told_s=NOW_S - 1000)
    assert free(silent, wish()) is None


@pytest.mark.parametrize(
    ("taints", "held"),
    [
        ([], False),
        (["other"], False),
        (["other", "modelcache.io/starting"], True),
        (["startup-taint.cluster-autoscaler.kubernetes.io/modelcache"], True),
        (["startup-taint.cluster-autoscaler.kubernetes.io/gpu"], False),
    ],
)
def test_only_taints_of_ours_are_taken_away(taints, held):
    assert held_by(taints) is held
