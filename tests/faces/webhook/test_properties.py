"""What holds for any pod."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.faces.webhook.affinity import PATH
from modelcache.faces.webhook.mutation import Choices, mutate
from tests.faces.webhook.support import LLAMA, LLAMA_ID, QWEN, QWEN_ID, Known, patched, pod

PATHS = ("/a", "/a/b", "/b", "/models", "/models/llama", "/models/llama/x")
REFS = (LLAMA, QWEN, "file:///models/x", "https://host/m?sig=1", "oci://r.io/a:b", "s4://x", "")
MODELS = st.lists(
    st.tuples(st.sampled_from(REFS), st.sampled_from(("", *PATHS))).map(
        lambda pair: f"{pair[0]}={pair[1]}" if pair[1] else pair[0]
    ),
    max_size=4,
).map(",".join)
KNOWN = st.builds(
    Known,
    st.sampled_from([{}, {LLAMA: [LLAMA_ID]}, {LLAMA: [LLAMA_ID, QWEN_ID], QWEN: [QWEN_ID]}]),
    st.sampled_from([(), (LLAMA,), (LLAMA, QWEN)]),
)
VOLUMES = st.sampled_from(
    [
        {"name": "scratch", "emptyDir": {}},
        {"name": "settings", "configMap": {"name": "x"}},
        {"name": "claim", "persistentVolumeClaim": {"claimName": "x"}},
    ]
)
MOUNTS = st.builds(
    lambda name, path, fixed: {"name": name, "mountPath": path, "readOnly": fixed},
    st.sampled_from(["scratch", "settings", "claim"]),
    st.sampled_from(PATHS),
    st.booleans(),
)
MISSING = st.sampled_from([None, []])


def named(kind: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    mounts = st.one_of(MISSING, st.lists(MOUNTS, max_size=2, unique_by=lambda m: m["mountPath"]))
    each = st.fixed_dictionaries({"image": st.just("x")}, optional={"volumeMounts": mounts})
    return st.lists(each, min_size=1, max_size=3).map(
        lambda found: [{"name": f"{kind}{n}", **one} for n, one in enumerate(found)]
    )


AFFINITIES = st.sampled_from(
    [
        None,
        {},
        {"nodeAffinity": {}},
        {"nodeAffinity": {PATH[-1]: []}},
        {"nodeAffinity": {PATH[-1]: [{"weight": 1, "preference": {"matchFields": []}}]}},
        {"podAffinity": {}},
    ]
)
SPECS = st.fixed_dictionaries(
    {"containers": named("c")},
    optional={
        "initContainers": st.one_of(MISSING, named("i")),
        "volumes": st.one_of(MISSING, st.lists(VOLUMES, unique_by=lambda v: v["name"])),
        "affinity": AFFINITIES,
        "schedulingGates": st.sampled_from([None, [], [{"name": "other"}]]),
        "nodeName": st.sampled_from(["", "node-1"]),
    },
)
PODS = st.builds(
    lambda models, spec, more: pod(models, spec=spec, **more),
    MODELS,
    SPECS,
    st.fixed_dictionaries(
        {},
        optional={
            "priority": st.sampled_from(["0", "100", "x"]),
            "containers": st.sampled_from(["c0", "c0,i0", ""]),
            "gate": st.sampled_from(["true", "false"]),
            "readiness_gate": st.sampled_from(["true", "false"]),
        },
    ),
)


def lists_in(spec: dict[str, Any]) -> list[list[Any]]:
    """All lists that a mutation may add to."""
    here: Any = spec
    for step in PATH:
        here = (here or {}).get(step)
    containers = [*(spec.get("initContainers") or ()), *spec["containers"]]
    return [
        spec.get("volumes") or [],
        spec.get("schedulingGates") or [],
        here or [],
        *(container.get("volumeMounts") or [] for container in containers),
    ]


@given(PODS, KNOWN, st.booleans())
def test_a_pass_only_adds_and_a_second_one_finds_nothing_to_do(
    before: dict[str, Any], known: Known, gate: bool
):
    choices = Choices(gate=gate)
    kept = deepcopy(before)
    try:
        operations = mutate(before, choices, known)
    except UsageError:
        return
    finally:
        assert before == kept
    after = patched(before, operations)
    assert mutate(after, choices, known) == []
    for old, new in zip(lists_in(before["spec"]), lists_in(after["spec"]), strict=True):
        assert new[: len(old)] == old
    volumes = [volume["name"] for volume in after["spec"].get("volumes") or ()]
    assert len(volumes) == len(set(volumes))
    for container in after["spec"]["containers"]:
        paths = [mount["mountPath"] for mount in container.get("volumeMounts") or ()]
        assert len(paths) == len(set(paths))


@given(PODS, KNOWN)
def test_the_same_pod_gives_the_same_patch(before: dict[str, Any], known: Known):
    def once() -> object:
        try:
            return mutate(before, Choices(), known)
        except UsageError as error:
            return error.message

    assert once() == once()
