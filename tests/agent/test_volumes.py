"""Volumes: published when warm, once, and found again by the next agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.agent.access import Access
from modelcache.agent.borrowing import Borrowing
from modelcache.agent.events import EventKind
from modelcache.agent.node import Node
from modelcache.agent.volumes import Volumes
from modelcache.config import Settings
from modelcache.domain.members import Priority
from modelcache.domain.refs import parse_ref
from modelcache.domain.volumes import VolumeRequest, progress_line
from modelcache.domain.wanted import ModelPhase, Trouble, WantedStatus
from modelcache.errors import (
    Forbidden,
    Leased,
    MountFailed,
    NotFound,
    NotInStore,
    NotWarmYet,
    UsageError,
    VolumeConflict,
)
from modelcache.mounts import mounts_at, mounts_below, unmount
from tests.agent.nodes import Models, node_settings, ref_to, wait_phase
from tests.kernel.roots import needs_root, targets
from tests.servers.faults import held_from
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.kernel, needs_root]


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with targets(tmp_path / "pods") as folder:
        yield folder


@pytest.fixture
def chosen(tmp_path: Path, root: Path) -> Settings:
    return node_settings(tmp_path / "store", volume_roots=(str(root),))


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    server, folder = web
    made = Models(server.url, folder)
    yield made
    made.close()


@contextmanager
def volumes_of(chosen: Settings) -> Iterator[tuple[Volumes, Node, Engine]]:
    """As the daemon begins and ends them."""
    with Engine(chosen) as engine:
        node = Node(chosen, engine, name="node-1")
        volumes = Volumes(
            node, engine, chosen.agent.volume_roots, Access(chosen), Borrowing(chosen)
        )
        volumes.start()
        node.start()
        volumes.release_stale()
        try:
            yield volumes, node, engine
        finally:
            node.close()


def request(root: Path, ref: str, name: str = "v1", **more: str) -> VolumeRequest:
    return VolumeRequest(name, str(root / name), parse_ref(ref), **more)


def published(volumes: Volumes, node: Node, wanted: VolumeRequest) -> Path:
    """Ask, wait, ask again; the target."""
    try:
        volumes.publish(wanted)
    except NotWarmYet:
        wait_phase(node, wanted.ref, ModelPhase.WARM)
        volumes.publish(wanted)
    return Path(wanted.target)


def test_a_volume_is_there_when_the_model_is_warm_and_not_before(
    chosen: Settings, root: Path, models: Models
):
    ref = str(ref_to(models.add("m"), "m"))
    wanted = request(root, ref)
    with volumes_of(chosen) as (volumes, node, engine):
        with pytest.raises(NotWarmYet):
            volumes.publish(wanted)
        assert not Path(wanted.target).exists()
        assert node.status(wanted.ref).priority == Priority.MOUNTED
        wait_phase(node, wanted.ref, ModelPhase.WARM)
        volume = volumes.publish(wanted)
        assert volumes.publish(wanted) == volume
        target = Path(volume.target)
        size = (target / "model.safetensors").stat().st_size
        (mounted,) = mounts_at(target)
        assert mounted.read_only
        assert volumes.usage("v1") == (volume, True, size, 1)
        with pytest.raises(Leased, match=f"volume {target}"):
            engine.store.remove_model(volume.model_id)
        assert node.status(wanted.ref).priority == Priority.PREWARM
        assert volumes.unpublish("v1", str(target))
        assert not target.exists()
        assert not volumes.unpublish("v1", str(target))
        assert node.statuses() == []
        assert volumes.volumes() == engine.store.volumes() == []
        kinds = [event.kind for event in node.events.after(0)[0]]
        assert kinds.count(EventKind.PUBLISHED) == kinds.count(EventKind.UNPUBLISHED) == 1


def test_a_pod_that_goes_before_its_model_is_warm_leaves_nothing(
    chosen: Settings, root: Path, models: Models
):
    proxy = models.add("m", plan=held_from(0))
    wanted = request(root, str(ref_to(proxy, "m")))
    with volumes_of(chosen) as (volumes, node, _):
        with pytest.raises(NotWarmYet, match=r"waits for its turn|resolving|fetching"):
            volumes.publish(wanted)
        assert volumes.unpublish("v1", wanted.target)
        assert node.statuses() == []


def test_why_a_model_cannot_be_had_is_what_the_volume_says(
    chosen: Settings, root: Path, web: tuple[Nginx, Path]
):
    wanted = request(root, f"{web[0].url}/missing/")
    with volumes_of(chosen) as (volumes, node, _):
        with pytest.raises(NotWarmYet):
            volumes.publish(wanted)
        wait_phase(node, wanted.ref, ModelPhase.FAILED)
        with pytest.raises((NotFound, NotWarmYet), match="missing"):
            volumes.publish(wanted)


def test_what_is_mounted_outlives_the_agent_and_is_found_by_the_next(
    chosen: Settings, root: Path, models: Models
):
    ref = str(ref_to(models.add("m"), "m"))
    kept, taken = request(root, ref, "kept"), request(root, ref, "taken")
    with volumes_of(chosen) as (volumes, node, _):
        for wanted in (kept, taken):
            published(volumes, node, wanted)
    assert (root / "kept/model.safetensors").exists()
    unmount(root / "taken")  # while no agent lives, as a reboot does
    with volumes_of(chosen) as (volumes, node, engine):
        assert [volume.volume_id for volume in volumes.volumes()] == ["kept"]
        (status,) = node.statuses()
        assert [want.holder for want in status.wants] == ["volume/kept"]
        assert volumes.publish(kept).volume_id == "kept"
        assert len(mounts_below(root)) == 1
        assert len(engine.store.leases(volumes.volumes()[0].model_id)) >= 1
        volumes.unpublish("taken", taken.target)
        volumes.unpublish("kept", kept.target)
        assert mounts_below(root) == []


def test_a_volume_that_somebody_unmounted_is_mounted_again_with_the_same_model(
    chosen: Settings, root: Path, models: Models
):
    wanted = request(root, str(ref_to(models.add("m"), "m")))
    with volumes_of(chosen) as (volumes, node, _):
        target = published(volumes, node, wanted)
        unmount(target)
        volumes.publish(wanted)
        assert len(mounts_at(target)) == 1


def test_one_volume_is_one_thing_at_one_place(chosen: Settings, root: Path, models: Models):
    one, other = str(ref_to(models.add("m"), "m")), str(ref_to(models.add("n"), "n"))
    with volumes_of(chosen) as (volumes, node, _):
        target = published(volumes, node, request(root, one))
        for changed in (
            request(root, other),
            replace(request(root, one), target=str(root / "elsewhere")),
            request(root, one, sub_path="x"),
        ):
            with pytest.raises(VolumeConflict, match="published at"):
                volumes.publish(changed)
        with pytest.raises(VolumeConflict):
            volumes.unpublish("v1", str(root / "elsewhere"))
        assert len(mounts_at(target)) == 1


def test_a_folder_of_a_model_can_be_shown_alone(
    chosen: Settings, root: Path, web: tuple[Nginx, Path]
):
    server, folder = web
    (folder / "m/tokenizer").mkdir(parents=True)
    (folder / "m/weights").write_bytes(b"w")
    (folder / "m/tokenizer/vocab.json").write_bytes(b"{}")
    ref = f"{server.url}/m/"
    with volumes_of(chosen) as (volumes, node, engine):
        target = published(volumes, node, request(root, ref, sub_path="tokenizer"))
        assert [path.name for path in target.iterdir()] == ["vocab.json"]
        assert volumes.usage("v1")[2:] == (2, 1)
        with pytest.raises(UsageError, match="has no folder 'nothing'"):
            volumes.publish(request(root, ref, "v2", sub_path="nothing"))
        assert [volume.volume_id for volume in engine.store.volumes()] == ["v1"]


def test_targets_lie_below_the_roots_links_followed(
    chosen: Settings, root: Path, tmp_path: Path, models: Models
):
    ref = str(ref_to(models.add("m"), "m"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    with volumes_of(chosen) as (volumes, node, _):
        for target in (outside / "v", root / "link/v"):
            wanted = VolumeRequest("v1", str(target), parse_ref(ref))
            with pytest.raises(Forbidden, match=r"agent\.volume_roots"):
                volumes.publish(wanted)
            with pytest.raises(Forbidden):
                volumes.unpublish("v1", str(target))
        assert node.statuses() == []
        published(volumes, node, request(root, ref))
        with pytest.raises(MountFailed, match="cannot make the folder"):
            volumes.publish(VolumeRequest("v2", str(root / "no/such/parent"), parse_ref(ref)))
        with pytest.raises(NotInStore):
            volumes.usage("v2")


@pytest.mark.parametrize(
    ("volume_id", "target", "sub_path"),
    [
        ("", "/pods/v", ""),
        ("../x", "/pods/v", ""),
        ("v", "pods/v", ""),
        ("v", "/pods/../v", ""),
        ("v", "/pods//v", ""),
        ("v", "/pods/v\n", ""),
        ("v", "/pods/v", "../up"),
        ("v", "/pods/v", "/abs"),
    ],
)
def test_what_is_no_volume_is_refused(volume_id: str, target: str, sub_path: str):
    with pytest.raises(UsageError):
        VolumeRequest(volume_id, target, parse_ref("s3://b/m"), sub_path)


def status(phase: ModelPhase, **more: object) -> WantedStatus:
    return WantedStatus("id", "s3://b/m", phase, 90, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("moment", "line"),
    [
        (status(ModelPhase.QUEUED), "s3://b/m waits for its turn"),
        (status(ModelPhase.RESOLVING), "resolving s3://b/m"),
        (
            status(
                ModelPhase.TRANSFERRING,
                done_bytes=37_100_000_000,
                total_bytes=140_000_000_000,
                sources={f"peer:n{i}": 1 for i in range(5)},
                eta_s=41.2,
            ),
            "fetching 37.1/140 GB of s3://b/m, from 5 peers, ready in about 41 s",
        ),
        (
            status(
                ModelPhase.PAUSED,
                done_bytes=1_000_000,
                total_bytes=1_000_000_000,
                sources={"s3://b/m": 1, "peer:n": 2},
            ),
            "paused at 0.001/1 GB of s3://b/m, from 1 peer and the origin",
        ),
        (
            status(ModelPhase.FAILED, trouble=Trouble("forbidden", "no"), retry_in_s=60.0),
            "s3://b/m: no; tried again in 60 s",
        ),
        (status(ModelPhase.WARM), "s3://b/m is warm"),
    ],
)
def test_progress_in_one_line(moment: WantedStatus, line: str):
    assert progress_line(moment) == line
