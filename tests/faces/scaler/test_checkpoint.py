"""The format of checkpoints: what comes back, what is refused, and how large it can become."""

from __future__ import annotations

import base64
import json
import zlib
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import CorruptData
from modelcache.faces.scaler.checkpoint import (
    CONTENT_MAX,
    PLAIN_MAX,
    SAMPLES_MAX,
    STARTS_MAX,
    UNDER_WAY_MAX,
    Checkpoint,
    Ended,
    KeptStarts,
    checkpoint_of,
    server_print,
    source_print,
    spec_of,
    thinned,
)
from modelcache.faces.scaler.declared import FromPods, FromPrometheus, Scale, scale_of
from modelcache.forecast.demand import Sample

NOW_S = 1_790_000_000.0
PROBLEM = "damaged|version"


def made(**changed: Any) -> Checkpoint:
    values: dict[str, Any] = {
        "scale_uid": "6a3f",
        "written_s": NOW_S,
        "demand_source": "0123456789abcdef",
        "server": "fedcba9876543210",
        "samples": tuple(Sample(NOW_S - 60 + 5 * i, 1.25 * i, float(i % 3)) for i in range(12)),
        "starts": KeptStarts(
            warm=(Ended(NOW_S - 900, 35.0), Ended(NOW_S - 60, 41.0)),
            cold=(Ended(NOW_S - 300, 540.0),),
            abandoned=2,
            under_way={"pod-a": True, "pod-b": False},
        ),
    }
    return Checkpoint(**{**values, **changed})


def damaged(plain: object) -> dict[str, Any]:
    """A checkpoint with another content, which is whole as far as zlib can tell."""
    content = base64.b64encode(zlib.compress(json.dumps(plain).encode())).decode()
    return {"spec": {**spec_of(made()), "content": content}}


def plain_of(found: Checkpoint) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(spec_of(found)["content"])))
    return plain


def test_what_is_written_is_read_again():
    assert checkpoint_of({"spec": spec_of(made())}) == made()
    bare = made(samples=(), starts=KeptStarts(), demand_source="")
    assert checkpoint_of({"spec": spec_of(bare)}) == bare
    assert (bare.empty, made().empty) == (True, False)


times = st.lists(st.floats(0, 4e9), max_size=300, unique=True).map(sorted)


@given(times, st.data())
def test_any_history_comes_back_to_the_millisecond(ats: list[float], data: st.DataObject):
    rates = st.floats(0, 1e300)
    samples = tuple(Sample(at_s, data.draw(rates), data.draw(rates)) for at_s in ats)
    kept = thinned(samples)
    found = checkpoint_of({"spec": spec_of(made(samples=samples))}).samples
    assert len(found) == len(kept) <= SAMPLES_MAX
    assert [each.at_s for each in found] == sorted(each.at_s for each in found)
    for before, after in zip(kept, sorted(found, key=lambda each: each.at_s), strict=True):
        assert after.at_s == pytest.approx(before.at_s, abs=0.001)
    assert sorted(each.rate for each in found) == pytest.approx(
        sorted(each.rate for each in kept), rel=1e-5
    )


@given(st.integers(1, 5 * SAMPLES_MAX))
def test_a_thinned_history_keeps_its_ends_and_has_no_holes(count: int):
    found = thinned([Sample(5.0 * i, float(i)) for i in range(count)])
    assert len(found) == min(count, SAMPLES_MAX)
    assert (found[0].rate, found[-1].rate) == (0, count - 1)
    steps = {after.rate - before.rate for before, after in pairwise(found)}
    assert not steps or max(steps) - min(steps) <= 1


def test_the_largest_is_well_below_the_limit_and_keeps_the_newest():
    """Numbers that nothing can compress, and more of everything than is kept."""
    random = Random(7)
    ended = tuple(
        Ended(NOW_S - 86400 + 100 * i, round(random.uniform(1, 900), 3)) for i in range(300)
    )
    full = made(
        samples=tuple(
            Sample(NOW_S - 3600 + 3 * i + random.random(), random.random(), random.random())
            for i in range(1200)
        ),
        starts=KeptStarts(
            warm=ended,
            cold=ended,
            under_way={f"{random.getrandbits(128):032x}-xyz": bool(i % 2) for i in range(1200)},
        ),
    )
    spec = spec_of(full)
    assert len(spec["content"]) < CONTENT_MAX * 2 // 3
    found = checkpoint_of({"spec": spec})
    assert len(found.samples) == spec["samples"] == SAMPLES_MAX
    assert found.starts.warm == ended[-STARTS_MAX:]
    assert spec["starts"] == 2 * STARTS_MAX
    assert len(found.starts.under_way) == 2 * UNDER_WAY_MAX


@pytest.mark.parametrize(
    "spec",
    [
        {"version": 2},
        {"version": None},
        {"version": "1"},
        {"content": ""},
        {"content": "no base64!"},
        {"content": 7},
        {"content": base64.b64encode(b"nothing packed").decode()},
        {"content": base64.b64encode(zlib.compress(b"\xff\xfe")).decode()},
        {"content": base64.b64encode(zlib.compress(b"[" * 100_000)).decode()},
        {"content": base64.b64encode(zlib.compress(b" " * (PLAIN_MAX + 1))).decode()},
        {"content": "A" * (CONTENT_MAX + 4)},
        {"writtenAt": "yesterday"},
        {"writtenAt": None},
    ],
)
def test_what_is_no_checkpoint_is_refused(spec: dict[str, Any]):
    with pytest.raises(CorruptData, match=PROBLEM):
        checkpoint_of({"spec": {**spec_of(made()), **spec}})


@pytest.mark.parametrize("item", [{}, {"spec": None}, {"spec": []}, [], None, {"spec": {}}])
def test_an_object_of_another_shape_is_refused(item: Any):
    with pytest.raises(CorruptData, match=PROBLEM):
        checkpoint_of(item)


@pytest.mark.parametrize(
    "change",
    [
        {"demand": [[1], [1]]},
        {"demand": [[1], [1], [1, 2]]},
        {"demand": [[1], [float("nan")], [0]]},
        {"demand": [[1], [-1], [0]]},
        {"demand": [[5, -1], [1, 1], [0, 0]]},
        {"demand": [["1"], [1], [0]]},
        {"demand": [[True], [1], [0]]},
        {"demand": [[10**400], [1], [0]]},
        {"demand": [[10**20], [1], [0]]},
        {"demand": [[1] * 241, [1] * 241, [1] * 241]},
        {"demand": None},
        {"warm": [[1] * 201, [1] * 201]},
        {"cold": {"a": 1}},
        {"abandoned": -1},
        {"abandoned": 1.5},
        {"abandoned": True},
        {"underWay": {"warm": []}},
        {"underWay": {"warm": [1], "cold": []}},
        {"underWay": {"warm": ["x" * 65], "cold": []}},
        {"underWay": {"warm": [f"u{i}" for i in range(501)], "cold": []}},
    ],
)
def test_one_wrong_number_spoils_all_of_it(change: dict[str, Any]):
    assert checkpoint_of(damaged(plain_of(made()))) == made()  # the way there is sound
    with pytest.raises(CorruptData, match=PROBLEM):
        checkpoint_of(damaged({**plain_of(made()), **change}))


@given(st.data())
def test_no_flipped_bit_gets_through(data: st.DataObject):
    """Whatever stands in the content, the answer is the checkpoint or a refusal."""
    spec = spec_of(made())
    raw = bytearray(base64.b64decode(spec["content"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    spec["content"] = base64.b64encode(bytes(raw)).decode()
    try:
        found = checkpoint_of({"spec": spec})
    except CorruptData:
        return
    assert found == made()  # a bit of zlib's header that says nothing of the content


def scale(**spec: Any) -> Scale:
    return scale_of(
        {
            "metadata": {"name": "llama", "namespace": "default", "uid": "u", "generation": 1},
            "spec": {
                "model": "s3://models/llama",
                "selector": {"app": "llama"},
                "replica": {"gpus": 4, "requestsPerSecond": 2},
                **spec,
            },
        }
    )


def test_a_source_of_demand_is_told_from_every_other():
    pods = FromPods({"app": "g"}, 9090, "/metrics", "requests", {}, counter=True)
    others = [
        FromPods({"app": "h"}, 9090, "/metrics", "requests", {}, counter=True),
        FromPods({"app": "g"}, 9090, "/metrics", "requests", {}, counter=False),
        FromPods({"app": "g"}, 9090, "/metrics", "requests", {"a": "b"}, counter=True),
        FromPrometheus("sum(x)"),
        FromPrometheus("sum(x)", "sum(y)"),
        None,
    ]
    prints = {source_print(each) for each in (pods, *others)}
    assert len(prints) == 1 + len(others)
    assert source_print(None) == ""
    again = FromPods({"app": "g"}, 9090, "/metrics", "requests", {}, counter=True)
    assert source_print(again) == source_print(pods)


def test_starts_belong_to_a_model_on_like_devices_wherever_demand_is_read():
    demand = {"pods": {"port": 1, "metric": "m"}}
    same = [scale(), scale(demand=demand), scale(costs={"late": 1, "idle": 1})]
    assert len({server_print(each) for each in same}) == 1
    others = [
        scale(model="s3://models/other"),
        scale(exclude=["*.bin"]),
        scale(selector={"app": "other"}),
        scale(replica={"gpus": 8, "requestsPerSecond": 2}),
        scale(replica={"gpus": 4, "gpuResource": "amd.com/gpu", "requestsPerSecond": 2}),
    ]
    assert len({server_print(each) for each in (scale(), *others)}) == 1 + len(others)
