"""What kubelet asks of a node: volumes that come, wait, fail, and go."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import grpc
import pytest

from csi.protocol import csi_pb2
from modelcache.config import Settings
from modelcache.domain.volumes import MountMode
from modelcache.domain.wanted import ModelPhase
from modelcache.mounts import mounts_at, mounts_below, unmount
from tests.agent.nodes import Models, ref_to
from tests.agent.support import CHUNK_BYTES, random_bytes
from tests.csi.driver import NODE, Driver, driver_of, mount_capability, running_driver
from tests.kernel.roots import needs_root
from tests.kernel.streams import needs_fuse
from tests.servers.faults import held_from
from tests.servers.nginx import Nginx

pytestmark = [pytest.mark.kernel, needs_root]
Code = grpc.StatusCode
MODES = csi_pb2.VolumeCapability.AccessMode


def test_a_cold_model_is_awaited_and_mounted_read_only(driver: Driver, pods: Path, models: Models):
    target = pods / "a"
    ref = str(ref_to(models.add("m"), "m"))
    for _ in range(2):
        driver.ask.publish(target, model=ref)
        (mounted,) = mounts_at(target)
        assert mounted.read_only
    (usage, inodes) = driver.ask(
        "NodeGetVolumeStats", volume_id="vol-1", volume_path=str(target)
    ).usage
    assert usage.unit == csi_pb2.VolumeUsage.BYTES
    assert usage.used == usage.total == (target / "model.safetensors").stat().st_size
    assert (inodes.unit, inodes.used) == (csi_pb2.VolumeUsage.INODES, 1)
    for _ in range(2):
        driver.ask.unpublish(target)
    assert not target.exists()


@needs_fuse
def test_a_model_that_is_streamed_is_mounted_while_it_comes(
    driver: Driver, pods: Path, models: Models
):
    proxy = models.add("m", plan=held_from(8 << 20))
    target = pods / "a"
    for _ in range(2):
        driver.ask.publish(target, model=str(ref_to(proxy, "m")), mode="stream")
    (volume,) = driver.agent.daemon.volumes.volumes()
    assert volume.mode is MountMode.STREAM
    with (target / "model.safetensors").open("rb") as file:
        assert (
            os.pread(file.fileno(), 100, 4 << 20) == random_bytes(5 * CHUNK_BYTES)[4 << 20 :][:100]
        )
    (status,) = driver.agent.daemon.node.statuses()
    assert status.phase is not ModelPhase.WARM
    for _ in range(2):
        driver.ask.unpublish(target)
    assert not target.exists()


def test_a_deadline_leaves_the_model_coming_and_tells_how_far_it_is(
    driver: Driver, pods: Path, models: Models
):
    proxy = models.add("m")
    proxy.plan = held_from(4 << 20)
    ref = str(ref_to(proxy, "m"))
    for _ in range(2):  # kubelet's retries join the same download
        with pytest.raises(grpc.RpcError) as caught:
            driver.ask.publish(pods / "a", timeout_s=2.5, model=ref)
        assert caught.value.code() is Code.ABORTED
    assert "GB of " in caught.value.details()
    assert "fetching" in caught.value.details()
    assert "from the origin" in caught.value.details()
    (status,) = driver.agent.daemon.node.statuses()
    assert status.done_bytes > 0
    proxy.plan = lambda _: None
    driver.ask.publish(pods / "a", model=ref)
    before = [get.span for get in proxy.gets("model.safetensors") if get.span[0] < 4 << 20]
    assert len(before) == len(set(before)), "what was here was not fetched again"


def test_many_pods_of_one_model_are_one_download(driver: Driver, pods: Path, models: Models):
    proxy = models.add("m")
    ref = str(ref_to(proxy, "m"))
    failures: list[Exception] = []

    def publish(number: int) -> None:
        try:
            driver.ask.publish(pods / f"p{number}", volume_id=f"vol-{number}", model=ref)
        except grpc.RpcError as error:
            failures.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(mounts_below(pods)) == 40
    spans = [get.span for get in proxy.gets("model.safetensors")]
    assert len(spans) == len(set(spans))
    for number in range(40):
        driver.ask.unpublish(pods / f"p{number}", volume_id=f"vol-{number}")
    assert mounts_below(pods) == []


def test_a_persistent_volume_is_published_once_for_each_pod(
    driver: Driver, pods: Path, models: Models
):
    ref = str(ref_to(models.add("m"), "m"))
    driver.ask.publish(pods / "a", model=ref)
    driver.ask.publish(pods / "b", model=ref)
    driver.ask.unpublish(pods / "a")
    assert [mounted.target for mounted in mounts_below(pods)] == [str(pods / "b")]


def test_agents_and_drivers_come_and_go_and_mounts_stay(
    chosen: Settings, tmp_path: Path, pods: Path, models: Models
):
    ref = str(ref_to(models.add("m"), "m"))
    socket = tmp_path / "csi.sock"
    with running_driver(chosen, socket) as driver:
        driver.ask.publish(pods / "a", model=ref)
        driver.ask.publish(pods / "b", volume_id="vol-2", model=ref)
        with driver_of(driver.agent, tmp_path / "other.sock") as another:
            another.publish(pods / "a", model=ref)
    assert (pods / "a/model.safetensors").exists()
    unmount(pods / "b")  # as a reboot does, which kubelet follows with its own publishing
    with running_driver(chosen, socket) as driver:
        driver.ask.publish(pods / "a", model=ref)
        driver.ask.publish(pods / "b", volume_id="vol-2", model=ref)
        assert len(mounts_below(pods)) == 2
        driver.ask.unpublish(pods / "a")
        driver.ask.unpublish(pods / "b", volume_id="vol-2")
        assert mounts_below(pods) == []


# httpcore leaves a Unix socket that nobody listens on to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_its_agent_a_driver_says_so_and_goes_on(
    chosen: Settings, tmp_path: Path, pods: Path
):
    with running_driver(chosen, tmp_path / "csi.sock") as driver:
        running = driver.agent
    with driver_of(running, tmp_path / "csi.sock") as ask:
        with pytest.raises(grpc.RpcError) as caught:
            ask.publish(pods / "a", model="s3://bucket/llama")
        assert caught.value.code() is Code.UNAVAILABLE
        assert "no agent answers" in caught.value.details()
        assert not ask("Probe").ready.value


@pytest.mark.parametrize(
    ("context", "code", "words"),
    [
        ({}, Code.INVALID_ARGUMENT, "needs the attribute model"),
        ({"model": "ftp://x/y"}, Code.INVALID_ARGUMENT, "ftp"),
        (
            {"model": "s3://bucket/m", "sub_path": "x"},
            Code.INVALID_ARGUMENT,
            "'sub_path' is not known",
        ),
        ({"model": "s3://bucket/m", "subPath": "../x"}, Code.INVALID_ARGUMENT, "sub path"),
        ({"model": "s3://bucket/m", "mode": "some"}, Code.INVALID_ARGUMENT, "full and stream"),
        ({"model": "s3://bucket/m", "priority": "101"}, Code.INVALID_ARGUMENT, "0 to 100"),
        ({"model": "s3://bucket/m", "pullPolicy": "Never"}, Code.INVALID_ARGUMENT, "IfNotPresent"),
        ({"model": "s3://bucket/m", "include": '["x"'}, Code.INVALID_ARGUMENT, "JSON list"),
        (
            {"model": "s3://bucket/m", "model.csi.modelpack.org__reference": "r/m:1"},
            Code.INVALID_ARGUMENT,
            "not model.csi.modelpack.org/reference",
        ),
    ],
)
def test_attributes_that_are_wrong_are_told(
    driver: Driver, pods: Path, context: dict[str, str], code: grpc.StatusCode, words: str
):
    with pytest.raises(grpc.RpcError) as caught:
        driver.ask.publish(pods / "a", **context)
    assert caught.value.code() is code
    assert words in caught.value.details()
    assert not (pods / "a").exists()


def test_a_model_that_is_not_there_is_told_at_once(
    driver: Driver, pods: Path, web: tuple[Nginx, Path]
):
    with pytest.raises(grpc.RpcError) as caught:
        driver.ask.publish(pods / "a", model=f"{web[0].url}/missing/")
    assert caught.value.code() is Code.NOT_FOUND
    assert "missing" in caught.value.details()


def test_a_secret_whose_keys_mean_nothing_is_refused(driver: Driver, pods: Path):
    with pytest.raises(grpc.RpcError) as caught:
        driver.ask(
            "NodePublishVolume",
            volume_id="v",
            target_path=str(pods / "a"),
            volume_capability=mount_capability(),
            volume_context={"model": "s3://bucket/m"},
            secrets={"token": "hush"},
        )
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert "hush" not in caught.value.details()


@pytest.mark.parametrize(
    "capability",
    [
        csi_pb2.VolumeCapability(),
        csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume()),
        mount_capability(MODES.MULTI_NODE_MULTI_WRITER),
    ],
    ids=["nothing", "block", "many writers"],
)
def test_what_a_model_cannot_be_is_refused(
    driver: Driver, pods: Path, capability: csi_pb2.VolumeCapability
):
    with pytest.raises(grpc.RpcError) as caught:
        driver.ask(
            "NodePublishVolume",
            volume_id="v",
            target_path=str(pods / "a"),
            volume_capability=capability,
            volume_context={"model": "s3://bucket/m"},
        )
    assert caught.value.code() is Code.INVALID_ARGUMENT


def test_modelpack_attributes_mean_what_they_mean_there(driver: Driver, pods: Path):
    with pytest.raises(grpc.RpcError) as caught:
        driver.ask.publish(
            pods / "a",
            3.0,
            **{
                "model.csi.modelpack.org__reference": "127.0.0.1:1/m:1",
                "model.csi.modelpack.org__exclude-model-weights": "true",
            },
        )
    assert "oci://127.0.0.1:1/m:1" in caught.value.details()


def test_who_the_driver_is(driver: Driver):
    info = driver.ask("GetPluginInfo")
    assert info.name == "csi.modelcache.io"
    assert driver.ask("Probe").ready.value
    assert driver.ask("NodeGetInfo").node_id == NODE
