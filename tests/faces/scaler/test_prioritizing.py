"""What kube-scheduler is told of nodes."""

import json
import math

import pytest

from modelcache.domain.refs import parse_ref
from modelcache.domain.wanted import wanted_id
from modelcache.errors import UsageError
from modelcache.faces.controller.view import NodeView, views_of
from modelcache.faces.kubernetes import names
from modelcache.faces.scaler.prioritizing import NODES_MAX, prioritized

LLAMA, QWEN = "s3://models/llama", "hf://org/qwen"
POD = {"metadata": {"annotations": {names.MODELS: LLAMA}}}


def report(name, **models):
    """By the model's name: percent, or percent and predicted seconds."""
    refs = {"llama": LLAMA, "qwen": QWEN}
    told = []
    for model, said in models.items():
        percent, seconds = said if isinstance(said, tuple) else (said, None)
        line = {
            "ref": refs[model],
            "wantedId": wanted_id(parse_ref(refs[model])),
            "phase": "warm" if percent == 100 else "transferring",
            "percent": percent,
        }
        if seconds is not None:
            line["ready"] = {"p50Seconds": seconds, "p90Seconds": 2 * seconds}
        told.append(line)
    return {"metadata": {"name": name}, "status": {"models": told}}


VIEWS: dict[str, NodeView] = views_of(
    [
        report("warm", llama=100),
        report("soon", llama=(50, 60)),
        report("later", llama=(10, 300)),
        report("half", llama=50),
        report("both", llama=100, qwen=(90, 30)),
        report("none"),
    ]
)


def scores(pod=POD, nodes=("warm", "soon", "later", "half", "both", "none", "unheard"), **more):
    body = json.dumps({"Pod": pod, "NodeNames": list(nodes), **more}).encode()
    return {each["Host"]: each["Score"] for each in prioritized(body, VIEWS)}


def test_a_score_falls_with_the_time_that_is_predicted():
    assert scores() == {
        "warm": 10,
        "soon": round(10 * math.exp(-1)),
        "later": 0,
        "half": 0,
        "both": 10,
        "none": 0,
        "unheard": 0,
    }


def test_of_several_models_the_slowest_counts():
    pod = {
        "metadata": {"annotations": {names.MODELS: LLAMA}},
        "spec": {
            "volumes": [
                {"csi": {"driver": names.CSI_DRIVER, "volumeAttributes": {"model": QWEN}}},
                {"emptyDir": {}},
            ]
        },
    }
    found = scores(pod)
    assert found["warm"] == 0
    assert found["both"] == round(10 * math.exp(-0.5))


@pytest.mark.parametrize(
    "pod", [{}, {"metadata": None}, {"metadata": {"annotations": {names.MODELS: "nonsense"}}}]
)
def test_pods_without_models_find_all_nodes_alike(pod):
    assert set(scores(pod).values()) == {0}


def test_whole_nodes_are_read_where_a_scheduler_sends_them():
    nodes = {"items": [{"metadata": {"name": "warm"}}, {"metadata": {"name": "none"}}]}
    body = json.dumps({"Pod": POD, "NodeNames": None, "Nodes": nodes}).encode()
    assert prioritized(body, VIEWS) == [{"Host": "warm", "Score": 10}, {"Host": "none", "Score": 0}]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"Pod": 1, "NodeNames": []}',
        b'{"Pod": {}, "NodeNames": [1]}',
        b'{"Pod": {}, "NodeNames": "n"}',
        json.dumps({"Pod": {}, "NodeNames": ["n"] * (NODES_MAX + 1)}).encode(),
    ],
)
def test_what_no_scheduler_asks_is_refused(body):
    with pytest.raises(UsageError):
        prioritized(body, VIEWS)
