"""Tensors of a model that is on its way, and of one that never comes to the disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import modelcache
from modelcache.agent import Engine
from modelcache.config import Settings
from modelcache.domain.refs import parse_ref
from modelcache.errors import (
    BadTensors,
    DigestMismatch,
    Forbidden,
    NotFound,
    NotInStore,
    SourceUnavailable,
    UsageError,
)
from modelcache.loader.loading import HEAD_BYTES
from tests.agent.support import CHUNK_BYTES, settings
from tests.loader.models import Arrays, assert_same, write_shards
from tests.servers.faults import Fault, FaultProxy, Request
from tests.servers.minio import Minio
from tests.servers.nginx import Nginx
from tests.sources.buckets import Bucket

SHARDS = 3
LAST = f"model-{SHARDS:05}-of-{SHARDS:05}.safetensors"


def big(seed: int, chunks: int = 3) -> Arrays:
    """A few chunks of tensors that are about half a chunk each."""
    rng = np.random.default_rng(seed)
    return {
        f"s{seed}.t{n}": rng.integers(0, 255, CHUNK_BYTES // 2 + 77, np.uint8)
        for n in range(2 * chunks)
    }


@pytest.fixture
def site(web: tuple[Nginx, Path]) -> Iterator[tuple[FaultProxy, Path, Arrays]]:
    """A sharded model behind a proxy."""
    server, root = web
    wanted = write_shards(root, [big(n) for n in range(1, SHARDS + 1)])
    (root / "config.json").write_bytes(b"{}")
    for path in root.iterdir():
        path.chmod(0o644)
    with FaultProxy(server.url) as proxy:
        yield proxy, root, wanted


@pytest.fixture
def chosen(tmp_path: Path) -> Settings:
    return settings(tmp_path / "store")


class Held:
    """A plan: of the last shard only the first chunk comes, until `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def __call__(self, request: Request) -> Fault | None:
        if self.go.is_set() or request.span is None or not request.path.endswith(LAST):
            return None
        return Fault(stall_at=0) if request.span[0] >= CHUNK_BYTES else None


@pytest.mark.parametrize("through", ["store", "origin"])
@pytest.mark.parametrize("order", ["file", "arrival"])
def test_a_model_that_is_nowhere_near_arrives_whole(
    site: Any, chosen: Settings, through: str, order: str
) -> None:
    proxy, _, wanted = site
    tensors = modelcache.iter_tensors(
        f"{proxy.url}/", through=through, order=order, settings=chosen
    )
    assert_same(dict(tensors), wanted)


def test_a_loaded_model_is_warm_and_not_fetched_again(site: Any, chosen: Settings) -> None:
    proxy, _, wanted = site
    assert_same(modelcache.load(f"{proxy.url}/", settings=chosen), wanted)
    with Engine(chosen, write=False) as engine:
        (model,) = engine.models()
    assert model.warm
    before = len(proxy.gets(".safetensors"))
    assert_same(modelcache.load(f"{proxy.url}/", settings=chosen), wanted)
    assert_same(modelcache.load(model.model_id[:12], settings=chosen), wanted)
    assert len(proxy.gets(".safetensors")) == before


def test_what_is_loaded_from_the_origin_is_kept_nowhere(site: Any, chosen: Settings) -> None:
    proxy, _, wanted = site
    assert_same(modelcache.load(f"{proxy.url}/", through="origin", settings=chosen), wanted)
    assert not chosen.store.path.exists()


def test_tensors_are_given_before_the_rest_has_come(site: Any, chosen: Settings) -> None:
    proxy, _, wanted = site
    proxy.plan = held = Held()
    tensors = modelcache.iter_tensors(f"{proxy.url}/", settings=chosen)
    early = [next(tensors) for _ in range(len(wanted) - len(wanted) // SHARDS)]
    assert {name[:2] for name, _ in early} == {"s1", "s2"}
    held.go.set()
    assert_same(dict([*early, *tensors]), wanted)


def test_a_part_of_the_names_and_of_the_ranks_reads_no_more(site: Any, chosen: Settings) -> None:
    proxy, _, wanted = site
    found = modelcache.load(
        f"{proxy.url}/", through="origin", names=["s2.t1"], settings=chosen,
        rank=1, world_size=3, axes={"*": None},
    )  # fmt: skip
    assert found.keys() == {"s2.t1"}
    np.testing.assert_array_equal(found["s2.t1"], wanted["s2.t1"])
    asked = [request.span for request in proxy.gets(".safetensors") if request.span]
    allowed = CHUNK_BYTES // 2 + 77 + SHARDS * HEAD_BYTES
    assert sum(end - start for start, end in asked) <= allowed


def test_a_scattered_part_comes_from_an_origin_too(web: Any, chosen: Settings) -> None:
    server, root = web
    whole = np.random.default_rng(5).integers(0, 99, (64, 3000), np.uint8)
    wide = np.random.default_rng(6).integers(0, 99, (4, 600_000), np.uint8)
    write_shards(root, [{"w": whole, "wide": wide}])
    for path in root.iterdir():
        path.chmod(0o644)
    for rank in range(3):
        found = modelcache.load(
            f"{server.url}/", through="origin", settings=chosen,
            rank=rank, world_size=3, axes={"*": 1},
        )  # fmt: skip
        np.testing.assert_array_equal(found["w"], np.split(whole, 3, 1)[rank])
        np.testing.assert_array_equal(found["wide"], np.split(wide, 3, 1)[rank])


@pytest.mark.parametrize("fault", [Fault(reset_at=1000), Fault(truncate_at=99), Fault(status=503)])
def test_an_origin_that_stumbles_is_asked_again(site: Any, chosen: Settings, fault: Fault) -> None:
    proxy, _, wanted = site
    proxy.plan = lambda request: fault if request.number % 5 == 1 else None
    assert_same(modelcache.load(f"{proxy.url}/", through="origin", settings=chosen), wanted)


def test_an_origin_that_does_not_get_up_is_given_up(site: Any, chosen: Settings) -> None:
    proxy, _, _ = site
    proxy.plan = lambda request: Fault(status=503) if request.path.endswith(LAST) else None
    few = replace(chosen, transfer=replace(chosen.transfer, retries_max=1))
    with pytest.raises(SourceUnavailable):
        modelcache.load(f"{proxy.url}/", through="origin", settings=few)


@pytest.mark.parametrize("through", ["store", "origin"])
def test_what_the_origin_refuses_half_way_is_raised(
    site: Any, chosen: Settings, through: str
) -> None:
    proxy, _, _ = site
    proxy.plan = lambda request: Fault(status=403) if request.path.endswith(LAST) else None
    with pytest.raises(Forbidden):
        modelcache.load(f"{proxy.url}/", through=through, settings=chosen)
    with pytest.raises((NotFound, Forbidden)):
        modelcache.load(f"{proxy.url}/nothing/", through=through, settings=chosen)


def test_leaving_early_ends_the_pull_and_keeps_what_came(site: Any, chosen: Settings) -> None:
    proxy, _, wanted = site
    proxy.plan = Held()
    before = threading.active_count()
    tensors = modelcache.iter_tensors(f"{proxy.url}/", settings=chosen)
    for _ in range(len(wanted) - len(wanted) // SHARDS):
        next(tensors)
    tensors.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    with Engine(chosen, write=False) as engine:
        (model,) = engine.models()
    assert not model.warm
    assert model.present_bytes > model.size_bytes // 2


def index_of(root: Path, url: str, wrong: str) -> str:
    """A page that lists the model with digests, one of which is another's."""
    files = []
    for path in sorted(root.glob("model*")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if path.name == wrong:
            digest = hashlib.sha256(b"other").hexdigest()
        size = path.stat().st_size
        files.append({"path": path.name, "size": size, "sha256": digest, "url": path.name})
    (root / "index.json").write_text(json.dumps({"files": files}))
    (root / "index.json").chmod(0o644)
    return f"{url}/index.json#index=1"


def test_a_file_that_is_not_what_its_origin_says_fails_the_load(
    site: Any, chosen: Settings
) -> None:
    proxy, root, _ = site
    ref = index_of(root, proxy.url, LAST)
    tensors = modelcache.iter_tensors(ref, settings=chosen)
    with pytest.raises(DigestMismatch):
        list(tensors)
    with pytest.raises(DigestMismatch):
        modelcache.load(ref, settings=chosen)


def test_bytes_that_were_wrong_when_they_were_read_are_never_called_right(
    site: Any, chosen: Settings
) -> None:
    """The store gets right bytes in the end; whoever read the wrong ones is told."""
    proxy, root, wanted = site
    ref = index_of(root, proxy.url, "")
    held = Held()
    flipped = threading.Event()

    def plan(request: Request) -> Fault | None:
        late = request.path.endswith(LAST) and request.span and request.span[0] >= CHUNK_BYTES
        if not held.go.is_set() or not late or flipped.is_set():
            return held(request)
        flipped.set()
        return Fault(flip_at=5)

    proxy.plan = plan
    tensors = modelcache.iter_tensors(ref, settings=chosen)
    for _ in range(len(wanted) - len(wanted) // SHARDS):
        next(tensors)  # the last file's header is read by now
    held.go.set()
    with pytest.raises(DigestMismatch, match="load it again"):
        list(tensors)
    proxy.plan = lambda _: None
    assert_same(modelcache.load(ref, settings=chosen), wanted)


@pytest.mark.parametrize("flip", [True, False])
def test_a_crc_of_the_origin_is_held_against_what_was_read(
    minio: Minio, chosen: Settings, tmp_path: Path, flip: bool
) -> None:
    bucket = Bucket(minio)
    wanted = write_shards(tmp_path / "m", [big(4, chunks=8)])
    for path in (tmp_path / "m").iterdir():
        bucket.put(path.name, path.read_bytes(), ChecksumAlgorithm="CRC64NVME")
    with FaultProxy(minio.url) as proxy:
        if flip:
            proxy.plan = lambda request: (
                Fault(flip_at=9) if request.span and request.span[0] > CHUNK_BYTES else None
            )
        ref = f"s3://{bucket.name}/?endpoint={proxy.url}&style=path"
        if flip:
            with pytest.raises(DigestMismatch, match="crc64nvme"):
                modelcache.load(ref, through="origin", settings=chosen)
        else:
            assert_same(modelcache.load(ref, through="origin", settings=chosen), wanted)


def test_a_file_of_this_machine_is_an_origin(tmp_path: Path, chosen: Settings) -> None:
    wanted = write_shards(tmp_path / "m", [big(1)])
    ref = f"file://{tmp_path}/m"
    assert_same(modelcache.load(ref, through="origin", settings=chosen), wanted)
    assert_same(modelcache.load(ref, settings=chosen), wanted)


@pytest.mark.parametrize("through", ["store", "origin"])
def test_a_header_that_lies_is_refused_while_it_arrives(
    site: Any, chosen: Settings, through: str
) -> None:
    proxy, root, _ = site
    data = bytearray((root / LAST).read_bytes())
    data[:8] = (1 << 40).to_bytes(8, "little")
    (root / LAST).write_bytes(data)
    with pytest.raises(BadTensors, match=LAST):
        modelcache.load(f"{proxy.url}/", through=through, settings=chosen)


def test_a_model_is_protected_while_it_is_read_and_no_longer(site: Any, chosen: Settings) -> None:
    proxy, _, wanted = site
    modelcache.load(f"{proxy.url}/", settings=chosen)
    with Engine(chosen) as engine:
        (model,) = engine.models()
        tensors = modelcache.iter_tensors(model.model_id, settings=chosen)
        assert engine.models()[0].leases == ()
        first = next(tensors)
        assert [lease.kind for lease in engine.models()[0].leases] == ["load"]
        assert_same(dict([first, *tensors]), wanted)
        assert engine.models()[0].leases == ()


def test_nothing_is_asked_for_before_the_first_tensor_is(site: Any, chosen: Settings) -> None:
    proxy, _, _ = site
    for through in ("store", "origin"):
        modelcache.iter_tensors(f"{proxy.url}/", through=through, settings=chosen)
    assert not proxy.gets()


def test_ways_that_are_none_are_refused(chosen: Settings) -> None:
    with pytest.raises(UsageError, match="through"):
        modelcache.iter_tensors("https://host/x/", through="magic", settings=chosen)
    with pytest.raises(NotInStore):
        modelcache.load("0123abcd", settings=chosen)
    assert parse_ref("https://host/x/")
