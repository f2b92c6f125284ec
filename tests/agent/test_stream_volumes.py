"""Volumes that are shown before their model is here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic

import pytest

from modelcache.agent import Engine
from modelcache.agent.access import Access
from modelcache.agent.borrowing import Borrowing
from modelcache.agent.events import EventKind
from modelcache.agent.node import Node
from modelcache.agent.volumes import Volumes
from modelcache.config import Settings
from modelcache.domain.refs import parse_ref
from modelcache.domain.volumes import MountMode, Volume, VolumeRequest
from modelcache.domain.wanted import ModelPhase
from modelcache.errors import Leased, NotWarmYet
from modelcache.mounts import mounts_at, mounts_below
from tests.agent.nodes import MIB, Models, node_settings, ref_to, wait_event, wait_for, wait_phase
from tests.agent.support import CHUNK_BYTES, random_bytes
from tests.kernel.roots import targets
from tests.kernel.streams import covered, needs_fuse, until
from tests.servers.faults import Fault, Waiting, held_from
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.kernel, needs_fuse]

SIZE = 5 * CHUNK_BYTES
DATA = random_bytes(SIZE, 0)  # as Models makes the first


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with targets(tmp_path / "pods") as folder:
        yield folder


@pytest.fixture
def chosen(tmp_path: Path, root: Path) -> Settings:
    base = node_settings(tmp_path / "store", {"stall_timeout_s": 20.0}, volume_roots=(str(root),))
    stream = replace(base.stream, hold_s=0.0, read_timeout_s=20.0)
    return replace(base, stream=stream)


@pytest.fixture
def models(web: tuple[Nginx, Path]) -> Iterator[Models]:
    made = Models(web[0].url, web[1])
    yield made
    made.close()


@contextmanager
def volumes_of(chosen: Settings) -> Iterator[tuple[Volumes, Node, Engine]]:
    with Engine(chosen) as engine:
        node = Node(chosen, engine, name="node-1")
        roots = chosen.agent.volume_roots
        volumes = Volumes(node, engine, roots, Access(chosen), Borrowing(chosen))
        volumes.start()
        node.start()
        volumes.release_stale()
        try:
            yield volumes, node, engine
        finally:
            volumes.close()
            node.close()


def request(root: Path, ref: str, mode: MountMode = MountMode.STREAM, **more: str) -> VolumeRequest:
    return VolumeRequest("v1", str(root / "v1"), parse_ref(ref), mode=mode, **more)


def streamed(volumes: Volumes, wanted: VolumeRequest) -> Volume:
    """Ask until it is known what the model holds."""

    def publish() -> Volume | None:
        try:
            return volumes.publish(wanted)
        except NotWarmYet:
            return None

    return until(publish, "not published")


def test_a_streamed_volume_is_there_while_its_model_comes(
    chosen: Settings, root: Path, models: Models
):
    proxy = models.add("m", plan=held_from(4 * CHUNK_BYTES))
    wanted = request(root, str(ref_to(proxy, "m")))
    with volumes_of(chosen) as (volumes, node, engine):
        volume = streamed(volumes, wanted)
        assert volume.mode is MountMode.STREAM
        assert volumes.publish(wanted) == volume
        assert node.status(wanted.ref).phase is not ModelPhase.WARM
        weights = Path(volume.target) / "model.safetensors"
        assert weights.stat().st_size == SIZE
        with weights.open("rb") as file:
            assert os.pread(file.fileno(), MIB, 3 * CHUNK_BYTES) == DATA[3 * CHUNK_BYTES :][:MIB]
        assert volumes.usage("v1") == (volume, True, SIZE, 1)
        with pytest.raises(Leased):
            engine.store.remove_model(volume.model_id)
        assert volumes.unpublish("v1", volume.target)
        assert not volumes.unpublish("v1", volume.target)
        assert not Path(volume.target).exists()
        assert node.statuses() == []


def test_what_is_warm_is_mounted_whole_whatever_was_asked_for(
    chosen: Settings, root: Path, models: Models
):
    wanted = request(root, str(ref_to(models.add("m"), "m")))
    with volumes_of(chosen) as (volumes, node, engine):
        engine.pull(wanted.ref)
        node.want(wanted.ref)
        wait_phase(node, wanted.ref, ModelPhase.WARM)
        volume = volumes.publish(wanted)
        assert volume.mode is MountMode.FULL
        (mounted,) = mounts_at(Path(volume.target))
        assert mounted.root != "/", "a folder of the store's own filesystem"


def test_readers_hear_of_an_origin_that_refuses_and_wait_no_longer(
    chosen: Settings, root: Path, models: Models
):
    proxy = models.add("m", plan=held_from(2 * CHUNK_BYTES))
    wanted = request(root, str(ref_to(proxy, "m")))
    with volumes_of(replace(chosen, transfer=replace(chosen.transfer, stall_timeout_s=0.5))) as (
        volumes,
        node,
        _,
    ):
        volume = streamed(volumes, wanted)
        wait_for(node, wanted.ref, lambda status: status.done_bytes)
        proxy.plan = lambda request: Fault(status=403) if request.span else None
        wait_event(node, EventKind.FAILED)
        with (Path(volume.target) / "model.safetensors").open("rb") as file:
            assert os.pread(file.fileno(), 100, 0) == DATA[:100]
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(file.fileno(), 100, SIZE - 100)


def test_who_waits_has_it_tried_again_soon(chosen: Settings, root: Path, models: Models):
    proxy = models.add("m", plan=held_from(2 * CHUNK_BYTES))
    wanted = request(root, str(ref_to(proxy, "m")))
    quick = replace(chosen.transfer, stall_timeout_s=0.5, retries_max=0)
    with volumes_of(replace(chosen, transfer=quick)) as (volumes, node, _):
        volume = streamed(volumes, wanted)
        board = node._board
        wait_event(node, EventKind.RETRYING)
        with board.changed:
            (known,) = board.wanted.values()
            assert board.changed.wait_for(lambda: known.attempt is None, 20)
            known.due_s = monotonic() + 3600  # as after many failures
        proxy.plan = lambda _: None
        with (Path(volume.target) / "model.safetensors").open("rb") as file:
            assert os.pread(file.fileno(), 100, SIZE - 100) == DATA[-100:]


def test_a_folder_of_a_model_can_be_streamed(chosen: Settings, root: Path, web: tuple[Nginx, Path]):
    folder = web[1] / "m" / "inner"
    folder.mkdir(parents=True)
    (folder / "weights.bin").write_bytes(DATA)
    (web[1] / "m" / "other.bin").write_bytes(DATA[:10])
    (web[1] / "m" / "last.bin").write_bytes(DATA)
    ref = f"{web[0].url}/m/"
    slow = replace(chosen, transfer=replace(chosen.transfer, bandwidth_limit_bytes_s=20 * MIB))
    with volumes_of(slow) as (volumes, _, _):
        volume = streamed(volumes, request(root, ref, sub_path="inner"))
        target = Path(volume.target)
        assert [path.name for path in target.iterdir()] == ["weights.bin"]
        assert (target / "weights.bin").read_bytes() == DATA


def test_an_agent_that_finds_a_mount_which_nobody_held_makes_it_anew_and_says_so(
    chosen: Settings, root: Path, models: Models
):
    proxy = models.add("m", plan=held_from(2 * CHUNK_BYTES))
    wanted = request(root, str(ref_to(proxy, "m")))
    with volumes_of(chosen) as (volumes, _, _):
        volume = streamed(volumes, wanted)
        target = Path(volume.target)
    with volumes_of(chosen) as (volumes, node, _):
        assert volumes.volumes() == [volume]
        event = wait_event(node, EventKind.STREAM_REMOUNTED)
        assert event.data["volume_id"] == "v1"
        assert len(mounts_at(target)) == 1
        with (target / "model.safetensors").open("rb") as file:
            assert os.pread(file.fileno(), 100, 0) == DATA[:100]


# As on a kernel without passthrough: a complete model covers its stream


@pytest.fixture
def without(chosen: Settings) -> Settings:
    return replace(chosen, stream=replace(chosen.stream, passthrough=False))


def test_a_covered_volume_protects_its_model_and_is_taken_away_whole(
    without: Settings, root: Path, models: Models
):
    rest = Waiting(4 * CHUNK_BYTES)
    proxy = models.add("m", plan=rest)
    wanted = request(root, str(ref_to(proxy, "m")))
    with volumes_of(without) as (volumes, _, engine):
        volume = streamed(volumes, wanted)
        target = Path(volume.target)
        assert len(mounts_at(target)) == 1
        rest.release()
        ids = covered(target)
        assert (target / "model.safetensors").read_bytes() == DATA
        snapshot = engine.store.snapshot_path(volume.model_id)
        assert snapshot is not None
        assert target.stat().st_ino == snapshot.stat().st_ino
        assert volumes.publish(wanted) == volume
        assert [each.mount_id for each in mounts_at(target)] == ids, "asking twice is asking once"
        assert volumes.usage("v1") == (volume, True, SIZE, 1)
        with pytest.raises(Leased):
            engine.store.remove_model(volume.model_id)
        assert volumes.unpublish("v1", volume.target)
        assert mounts_below(root) == []
        assert not volumes.unpublish("v1", volume.target)
        engine.store.remove_model(volume.model_id)


def test_an_agent_leaves_a_covered_mount_as_it_is_though_nobody_held_it(
    without: Settings, root: Path, models: Models
):
    rest = Waiting(4 * CHUNK_BYTES)
    proxy = models.add("m", plan=rest)
    with volumes_of(without) as (volumes, _, _):
        volume = streamed(volumes, request(root, str(ref_to(proxy, "m"))))
        rest.release()
        ids = covered(Path(volume.target))
    for _ in range(2):
        with volumes_of(without) as (volumes, node, engine):
            assert volumes.volumes() == [volume]
            assert [each.mount_id for each in mounts_at(Path(volume.target))] == ids
            with pytest.raises(Leased):
                engine.store.remove_model(volume.model_id)
            events, _ = node.events.after(0)
            assert EventKind.STREAM_REMOUNTED not in {event.kind for event in events}
    with volumes_of(without) as (volumes, _, engine):
        assert volumes.unpublish("v1", volume.target)
        assert mounts_below(root) == []
        assert not list(engine.store.layout.streams.iterdir())


def test_a_folder_of_a_model_is_covered_by_that_folder(
    without: Settings, root: Path, web: tuple[Nginx, Path]
):
    for name, data in (("m/inner/weights.bin", DATA), ("m/other.bin", DATA[:10])):
        path = web[1] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    slow = replace(without, transfer=replace(without.transfer, bandwidth_limit_bytes_s=20 * MIB))
    with volumes_of(slow) as (volumes, _, _):
        volume = streamed(volumes, request(root, f"{web[0].url}/m/", sub_path="inner"))
        target = Path(volume.target)
        covered(target)
        assert [path.name for path in target.iterdir()] == ["weights.bin"]
        assert (target / "weights.bin").read_bytes() == DATA
        assert volumes.unpublish("v1", volume.target)


def test_a_cover_that_cannot_be_is_told_once_and_the_stream_goes_on(
    without: Settings, root: Path, web: tuple[Nginx, Path], models: Models
):
    """The store has been tampered with: where the folder should be there is none."""
    (web[1] / "m").mkdir()
    rest = Waiting(4 * CHUNK_BYTES)
    proxy = models.add("m/inner", plan=rest)
    wanted = request(root, f"{proxy.url}/m/", sub_path="inner")
    with volumes_of(without) as (volumes, node, engine):
        volume = streamed(volumes, wanted)
        engine.store.layout.snapshot(volume.model_id).mkdir(parents=True)
        event = wait_event(node, EventKind.STREAM_TROUBLE)
        assert event.data["what"] == "no_cover"
        assert "No such file or directory" in event.data["message"]
        target = Path(volume.target)
        rest.release()
        assert (target / "model.safetensors").read_bytes() == DATA
        assert len(mounts_at(target)) == 1
        assert volumes.streams() == (1, {"no_cover": 1})
