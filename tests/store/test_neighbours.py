"""Several processes on one store: adding, removing, collecting and reading the same models at once.

A seeded run; `MODELCACHE_SEED` for another, `MODELCACHE_CRASHES` for a longer one.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from time import sleep

import pytest
import xxhash

from modelcache.domain.manifests import Manifest
from modelcache.errors import BlobBusy, Leased, NotInStore
from modelcache.store import Store, receipts, room
from tests.store.processes import exit_code, fork, kill
from tests.store.support import (
    CHUNK,
    check_tidy,
    collect,
    content_id,
    manifest_of,
    open_store,
    put,
    random_bytes,
    tree,
    wall_clock_s,
)

SEED = int(os.environ.get("MODELCACHE_SEED", "21"))
KILLS = int(os.environ.get("MODELCACHE_CRASHES", "25"))
PROCESSES = 3
WEEK_S = 7 * 86400.0
SHARED = {f"shared-{number}": random_bytes(2 * CHUNK + number, number) for number in range(2)}
SMALL = {f"small/{number}": random_bytes(100, 50 + number) for number in range(4)}
MODELS = [
    {"own": random_bytes(3 * CHUNK, 100 + number), "mine": b"%d" % number, **SHARED, **SMALL}
    for number in range(3)
]


def pull(store: Store, content: dict[str, bytes]) -> Manifest:
    """Make a model warm beside others who do the same; it is whole for as long as it is held."""
    manifest = manifest_of(content)
    with store.begin_model(manifest, "test"):
        for data in content.values():
            if len(data) > CHUNK:
                put_beside_others(store, data)
        stage_missing(store, [data for data in content.values() if len(data) <= CHUNK])
        assert tree(store.add_model(manifest)) == content
        for data in content.values():
            assert store.has_blob(content_id(data), len(data))
    return manifest


def put_beside_others(store: Store, data: bytes) -> None:
    while not store.has_blob(content_id(data), len(data)):
        try:
            put(store, data)
        except BlobBusy:
            sleep(0.0005)


def stage_missing(store: Store, contents: list[bytes]) -> None:
    group = store.small_blobs()
    for data in contents:
        if not store.has_blob(content_id(data), len(data)):
            xxh3 = xxhash.xxh3_128_digest(data)
            group.add(content_id(data), memoryview(data), xxh3=xxh3, verified="sha256")
    group.commit()
    group.close()


def read(store: Store, content: dict[str, bytes]) -> None:
    """Whoever holds a warm model sees all of it until they let go."""
    model_id = manifest_of(content).model_id
    try:
        with store.hold(model_id, "mount", "reader"):
            path = store.snapshot_path(model_id)
            if path is not None:
                assert tree(path) == content
                assert tree(path) == content
    except NotInStore:
        return


def remove(store: Store, content: dict[str, bytes]) -> None:
    try:
        store.remove_model(manifest_of(content).model_id)
    except Leased:
        return


def sweep(store: Store, _: dict[str, bytes]) -> None:
    room.collect_garbage(store, now_s=wall_clock_s(), partial_older_than_s=WEEK_S)


ACTIONS: list[Callable[[Store, dict[str, bytes]], object]] = [pull, pull, read, remove, sweep]


def live(path: Path, seed: int, progress: int) -> None:
    """Do this and that, for ever."""
    source = random.Random(seed)
    while True:
        store = open_store(path)
        source.choice(ACTIONS)(store, source.choice(MODELS))
        os.write(progress, b".")


def start(path: Path, seed: int) -> tuple[int, int]:
    """A process, and where it tells its progress."""
    receiving, sending = os.pipe()
    pid = fork(lambda: live(path, seed, sending))
    os.close(sending)
    return pid, receiving


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["attribute", "file"])
def test_neighbours_that_come_and_are_killed_never_see_or_leave_anything_wrong(
    tmp_path, kind, monkeypatch
):
    if kind == "file":
        monkeypatch.setattr(receipts, "attach", lambda *_: False)
    print(f"seed {SEED}, {KILLS} kills")
    source = random.Random(SEED)
    path = tmp_path / "store"
    open_store(path)
    running = [start(path, source.getrandbits(32)) for _ in range(PROCESSES)]
    try:
        for _ in range(KILLS):
            pid, progress = running.pop(source.randrange(PROCESSES))
            for _ in range(source.randrange(12)):
                assert os.read(progress, 1) == b".", f"failed with {exit_code(pid)}; see above"
            kill(pid)
            os.close(progress)
            running.append(start(path, source.getrandbits(32)))
    finally:
        for pid, progress in running:
            kill(pid)
            os.close(progress)
    store = open_store(path)
    manifests = [pull(store, content) for content in MODELS]
    collect(store)
    check_tidy(store, *manifests)
    assert not list(store.layout.leases.iterdir())
