"""What a scaler has seen outlasts it: checkpoints on a real API server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from lightkube import Client
from lightkube.types import PatchType
from prometheus_client import generate_latest

from modelcache.agent.clock import wall_clock_s
from modelcache.errors import SourceRefused
from modelcache.faces.kubernetes.connect import connect
from modelcache.faces.kubernetes.objects import ModelScale, ModelScaleCheckpoint
from modelcache.faces.scaler.checkpoint import (
    Checkpoint,
    Ended,
    KeptStarts,
    checkpoint_of,
    server_print,
    source_print,
)
from modelcache.faces.scaler.checkpoint_store import ONE_BY_ONE_MAX, CheckpointStore
from modelcache.faces.scaler.declared import Key, Scale, scale_of
from modelcache.faces.scaler.demand import HISTORY_S
from modelcache.faces.scaler.life import Scaler
from modelcache.forecast.demand import Sample
from tests.cluster.autoscaling import account
from tests.cluster.installing import DAEMONSET, rendered
from tests.cluster.serving import make_gpu_node, make_scale, remove_scales, scaling
from tests.cluster.support import wait_until
from tests.servers.control_plane import ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]
DEMAND = {"prometheus": {"query": "sum(x)"}}
COUNT = 50
GUIDE = DAEMONSET.parent / "docs" / "autoscaling.md"


@dataclass
class Told:
    """What was logged: events, the scales they are about, and what was said."""

    lines: list[tuple[str, str, str]] = field(default_factory=list)

    def debug(self, event: str, **fields: Any) -> None:
        line = (event, str(fields.get("scale", "")), str(fields.get("message", "")))
        self.lines.append(line)

    info = warning = error = debug

    def of(self, event: str) -> list[str]:
        return [scale for each, scale, _ in self.lines if each == event]


@pytest.fixture(autouse=True)
def _nodes(client: Client) -> Iterator[None]:
    make_gpu_node(client, "g1")
    yield
    remove_scales(client, "g1")


def scale_named(client: Client, name: str, **spec: Any) -> Scale:
    make_scale(client, name, **{"demand": DEMAND, **spec})
    return scale_of(client.get(ModelScale, name, namespace="default"))


def checkpoint(scale: Scale, age_s: float = 60.0) -> Checkpoint:
    """Of COUNT samples and five warm starts."""
    now_s = float(int(wall_clock_s() - age_s))  # as pods tell times
    return Checkpoint(
        scale_uid=scale.uid,
        written_s=now_s,
        demand_source=source_print(scale.source),
        server=server_print(scale),
        samples=tuple(Sample(now_s - 5.0 * i, 2.0) for i in reversed(range(COUNT))),
        starts=KeptStarts(warm=tuple(Ended(now_s - 600 + i, 40.0 + i) for i in range(5))),
    )


def stored(client: Client, key: Key) -> Any:
    return client.get(ModelScaleCheckpoint, key[1], namespace=key[0])


def knows(scaler: Scaler, key: Key) -> tuple[int, int]:
    """Samples and warm starts."""
    return len(scaler.demand.kept(key)[1]), len(scaler.starts.seen(key).warm)


@pytest.mark.parametrize(
    ("changed", "known"),
    [
        ({}, (COUNT, 5)),
        ({"costs": {"late": 5, "idle": 1}, "delaySeconds": 90}, (COUNT, 5)),
        ({"demand": {"prometheus": {"query": "sum(y)"}}}, (0, 5)),
        ({"demand": None}, (0, 5)),
        ({"model": "s3://models/other"}, (COUNT, 0)),
        ({"replica": {"gpus": 8, "requestsPerSecond": 2}}, (COUNT, 0)),
        ({"model": "s3://models/other", "demand": None}, (0, 0)),
    ],
)
def test_what_still_holds_is_taken_over(
    client: Client, plane: ControlPlane, changed: dict[str, Any], known: tuple[int, int]
):
    scale = scale_named(client, "llama")
    CheckpointStore(client).write(scale.key, checkpoint(scale))
    client.patch(
        ModelScale,
        "llama",
        {"spec": changed},
        namespace="default",
        patch_type=PatchType.MERGE,
    )
    with plane.client() as mine, scaling(mine) as scaler:
        assert knows(scaler, scale.key) == known
        page = generate_latest(scaler.metrics.registry).decode()
        age = 'modelcache_scaler_checkpoint_age_seconds{model="llama",namespace="default"} '
        assert (age in page) == any(known)
        if any(known):
            assert 60 <= scaler.restoring.ages_s()[scale.key] < 120
        loaded = f'modelcache_scaler_checkpoints_total{{result="loaded"}} {int(any(known))}.0'
        assert loaded in page


def test_a_namesake_has_no_use_for_it(client: Client, plane: ControlPlane):
    scale = scale_named(client, "llama")
    CheckpointStore(client).write(scale.key, checkpoint(replace(scale, uid="of-another")))
    with plane.client() as mine, scaling(mine) as scaler:
        assert knows(scaler, scale.key) == (0, 0)
        assert scaler.restoring.read(scale)


def test_samples_go_with_the_window_and_starts_do_not(client: Client, plane: ControlPlane):
    scale = scale_named(client, "llama")
    found = checkpoint(scale, age_s=HISTORY_S - 100)  # the older of the samples are out of it
    CheckpointStore(client).write(scale.key, found)
    with plane.client() as mine, scaling(mine) as scaler:
        samples, starts = knows(scaler, scale.key)
        assert 0 < samples <= 21
        assert starts == 5


@pytest.mark.parametrize(
    "spec",
    [{"version": 99}, {"content": "bm90aGluZw=="}, {"content": ""}, {"content": "eJwDAAAAAAE="}],
)
def test_one_that_cannot_be_read_is_told_once_and_costs_no_other(
    client: Client, plane: ControlPlane, spec: dict[str, Any]
):
    bad, good = scale_named(client, "bad"), scale_named(client, "good")
    for scale in (bad, good):
        CheckpointStore(client).write(scale.key, checkpoint(scale))
    client.patch(
        ModelScaleCheckpoint,
        "bad",
        {"spec": spec},
        namespace="default",
        patch_type=PatchType.MERGE,
    )
    told = Told()
    with plane.client() as mine, scaling(mine, log=told) as scaler:
        assert knows(scaler, good.key) == (COUNT, 5)
        assert knows(scaler, bad.key) == (0, 0)
        assert told.of("checkpoint_unusable") == ["default/bad"]
        assert scaler.restoring.read(bad)  # so that a sound one can be written over it


def test_many_are_listed(client: Client, plane: ControlPlane):
    scales = [scale_named(client, f"m{i}") for i in range(ONE_BY_ONE_MAX + 4)]
    for scale in scales[:-1]:
        CheckpointStore(client).write(scale.key, checkpoint(scale))
    with plane.client() as mine, scaling(mine) as scaler:
        assert [knows(scaler, each.key) for each in scales[:-1]] == [(COUNT, 5)] * (len(scales) - 1)
        assert knows(scaler, scales[-1].key) == (0, 0)
        assert all(map(scaler.restoring.read, scales))


def test_who_leads_writes_what_changed_and_nothing_else(client: Client, plane: ControlPlane):
    scale, silent = scale_named(client, "llama"), scale_named(client, "silent")
    first = checkpoint(scale)
    with plane.client() as mine, scaling(mine) as scaler:
        view = scaler.cluster.view()
        assert view is not None
        scaler.demand.adopt(scale.key, first.demand_source, first.samples)
        scaler.starts.adopt(scale.key, first.server, first.starts)
        scaler.recording.leave(view)  # it leads not
        assert not list(client.list(ModelScaleCheckpoint, namespace="*"))
        scaler.recording.begin()
        wait_until(lambda: scaler.restoring.read(scale) and scaler.restoring.read(silent))
        scaler.recording.leave(view)
        (item,) = client.list(ModelScaleCheckpoint, namespace="*")
        assert item.metadata.name == "llama"  # of the other nothing is known
        (owner,) = item.metadata.ownerReferences
        assert (owner.apiVersion, owner.kind) == ("modelcache.io/v1alpha1", "ModelScale")
        assert (owner.name, owner.uid) == ("llama", scale.uid)
        assert (item["spec"]["samples"], item["spec"]["starts"]) == (COUNT, 5)
        found = checkpoint_of(item)
        assert found.starts == first.starts
        assert len(found.samples) == COUNT

        version = item.metadata.resourceVersion
        scaler.recording.leave(view)
        assert stored(client, scale.key).metadata.resourceVersion == version
        scaler.demand.adopt(scale.key, first.demand_source, [Sample(wall_clock_s() - 1, 3.0)])
        scaler.recording.leave(view)
        assert stored(client, scale.key)["spec"]["samples"] == COUNT + 1
        scaler.recording.end()
        scaler.demand.adopt(scale.key, first.demand_source, [Sample(wall_clock_s() - 20, 3.0)])
        scaler.recording.leave(view)
        assert stored(client, scale.key)["spec"]["samples"] == COUNT + 1


def test_who_comes_to_lead_has_what_the_leader_before_wrote_last(
    client: Client, plane: ControlPlane
):
    """Both ran for a while; the one that follows began with nothing, and may spoil nothing."""
    scale = scale_named(client, "llama")
    with plane.client() as mine, scaling(mine) as scaler:
        assert knows(scaler, scale.key) == (0, 0)
        before = checkpoint(scale, age_s=1)
        CheckpointStore(client).write(scale.key, before)
        assert knows(scaler, scale.key) == (0, 0)  # nothing is watched
        scaler.recording.begin()
        wait_until(lambda: knows(scaler, scale.key) == (COUNT, 5))
        view = scaler.cluster.view()
        assert view is not None
        scaler.recording.leave(view)
        assert checkpoint_of(stored(client, scale.key)).starts == before.starts


def test_checkpoints_come_in_turn(client: Client, plane: ControlPlane):
    """By their uids: of six within five seconds, not all in the first round."""
    scales = [scale_named(client, f"m{i}") for i in range(6)]
    with plane.client() as mine, scaling(mine, every_s=5.0) as scaler:
        view = scaler.cluster.view()
        assert view is not None
        for scale in scales:
            found = checkpoint(scale)
            scaler.demand.adopt(scale.key, found.demand_source, found.samples)
        scaler.recording.begin()
        wait_until(lambda: all(map(scaler.restoring.read, scales)))
        counts = set()

        def written() -> bool:
            scaler.recording.look(view)
            counts.add(len(list(client.list(ModelScaleCheckpoint, namespace="*"))))
            return len(scales) in counts

        wait_until(written)
        assert len(counts) > 2


def test_a_refusal_is_told_once_and_harms_nothing(
    client: Client, plane: ControlPlane, tmp_path: Path
):
    scales = [scale_named(client, f"m{i}") for i in range(3)]
    told = Told()
    with account(plane, tmp_path) as (kubectl, config):
        kubectl("delete", "clusterrolebinding", "modelcache-scaler")
        with connect(str(config)) as mine:
            store = CheckpointStore(mine, log=told)
            for scale in scales * 2:
                with pytest.raises(SourceRefused, match="403"):
                    store.write(scale.key, checkpoint(scale))
                with pytest.raises(SourceRefused, match="403"):
                    list(store.read([scale.key]))
            assert told.of("checkpoint_not_written") == ["default/m0"]
            assert told.of("checkpoints_not_read") == [""]
            assert store.counts == {"loaded": 0, "unusable": 0, "written": 0, "refused": 6}
    # What the schema refuses is one object's matter, and is told of each.
    told = Told()
    store = CheckpointStore(client, log=told)
    for scale in (*scales, *scales):
        with pytest.raises(SourceRefused, match="422"):
            store.write(scale.key, checkpoint(replace(scale, uid="x" * 65)))
    assert told.of("checkpoint_not_written") == [f"default/m{i}" for i in range(3)]
    store.write(scales[0].key, checkpoint(scales[0]))
    with pytest.raises(SourceRefused):
        store.write(scales[0].key, checkpoint(replace(scales[0], uid="x" * 65)))
    assert len(told.of("checkpoint_not_written")) == 4  # it had been granted meanwhile


def test_the_guide_says_how_to_look_into_one(client: Client, plane: ControlPlane):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not there")
    scale = scale_named(client, "llama")
    CheckpointStore(client).write(scale.key, checkpoint(scale))
    blocks = re.findall(r"^```sh\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    (command,) = [each for each in blocks if "zlib" in each]
    shown = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command.replace("-n serving", "-n default")],
        env={**os.environ, "KUBECONFIG": str(plane.kubeconfig())},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(shown.stdout)
    assert len(found["demand"][0]) == COUNT
    assert found["warm"][1] == [40, 41, 42, 43, 44]


def test_a_cluster_without_that_kind_is_told_what_to_do():
    told = Told()
    with ControlPlane() as bare, bare.client() as mine:
        store = CheckpointStore(mine, log=told)
        for keys in ([("default", "llama")], [("default", f"m{i}") for i in range(40)]):
            with pytest.raises(SourceRefused):
                list(store.read(keys))
        with pytest.raises(SourceRefused):
            store.write(
                ("default", "llama"),
                Checkpoint(scale_uid="u", written_s=0.0, demand_source="", server=""),
            )
    assert [event for event, _, _ in told.lines] == [
        "checkpoints_not_read",
        "checkpoint_not_written",
    ]
    assert all("kubectl apply" in message for _, _, message in told.lines)


def test_nobody_but_the_scaler_has_rights_on_them():
    roles = {
        found["metadata"]["name"]: rule["verbs"]
        for found in rendered({"scaler.enabled": True})
        if found["kind"] in {"ClusterRole", "Role"}
        for rule in found["rules"]
        if {"modelscalecheckpoints", "*"} & set(rule.get("resources", ()))
    }
    assert roles == {"modelcache-scaler": ["get", "list", "create", "patch"]}
