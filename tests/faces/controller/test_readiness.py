"""What a pod's condition says of its weights, and how often."""

import pytest

from modelcache.faces.controller.readiness import MESSAGE_EVERY_S, Told, weights_condition
from modelcache.faces.controller.view import view_of

NOW_S = 1_800_000_000
NOW = "2027-01-15T08:00:00Z"
GB = 10**9


def model(name: str, percent: int = 62, **more):
    plain = {
        "ref": f"s3://m/{name}",
        "wantedId": name,
        "phase": "warm" if percent == 100 else "transferring",
        "percent": percent,
        "totalBytes": 100 * GB,
        "doneBytes": percent * GB,
    }
    return {**plain, **more}


def view(*models):
    return view_of({"metadata": {"name": "n"}, "status": {"models": list(models)}})


def ready(p50: float, p90: float):
    return {"p50Seconds": p50, "p90Seconds": p90}


def told_of(condition) -> Told:
    return Told(condition["status"], condition["reason"], condition["message"], NOW_S)


def test_it_says_how_far_and_for_how_long():
    condition = weights_condition(["a"], view(model("a", ready=ready(41.2, 66))), None, NOW)
    assert condition == {
        "type": "modelcache.io/WeightsReady",
        "status": "False",
        "reason": "Fetching",
        "message": "62% eta 41s p90 66s",
        "lastProbeTime": NOW,
        "lastTransitionTime": NOW,
    }


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ([], ("False", "Waiting", "the node's agent has not begun")),
        ([model("a")], ("False", "Fetching", "31%")),  # of the other nothing is known
        ([model("a"), model("b", 100)], ("False", "Fetching", "81%")),
        (
            [model("a", ready=ready(5, 70)), model("b", 10, ready=ready(60, 65))],
            ("False", "Fetching", "36% eta 60s p90 70s"),
        ),
        ([model("a", ready=ready(1, 2)), model("b", 0)], ("False", "Fetching", "31%")),
        (
            [model("a", phase="failed", message="no room"), model("b")],
            ("False", "Failed", "no room"),
        ),
        ([model("a", 100), model("b", 100)], ("True", "Warm", "")),
        ([model("a", 99, doneBytes=200 * GB), model("b", 100)], ("False", "Fetching", "99%")),
    ],
)
def test_all_of_a_pods_models_count(models, expected):
    condition = weights_condition(["a", "b"], view(*models), None, NOW)
    assert condition is not None
    assert (condition["status"], condition["reason"], condition["message"]) == expected


def test_a_message_is_renewed_now_and_then_and_a_status_at_once():
    first = weights_condition(["a"], view(model("a", 10)), None, NOW)
    told = told_of(first)
    later = view(model("a", 20))
    before_s = NOW_S - MESSAGE_EVERY_S
    assert weights_condition(["a"], later, told, NOW) is None
    renewed = weights_condition(["a"], later, Told("False", "Fetching", "10%", before_s), NOW)
    assert renewed is not None
    assert renewed["message"] == "20%"
    assert "lastTransitionTime" not in renewed  # its status has not changed
    assert weights_condition(["a"], later, Told("False", "Fetching", "20%", 0.0), NOW) is None
    warm = weights_condition(["a"], view(model("a", 100)), told, NOW)
    assert warm is not None
    assert (warm["status"], warm["lastTransitionTime"]) == ("True", NOW)
    assert weights_condition(["a"], view(model("a", 100)), told_of(warm), NOW) is None


def test_a_node_without_an_agent_is_waited_for():
    condition = weights_condition(["a"], None, None, NOW)
    assert condition is not None
    assert condition["reason"] == "Waiting"
