"""Kill a pulling process at random moments: nothing finished is lost, nothing wrong is seen.

Fifty times in the suite; `MODELCACHE_CRASHES=500` for a longer run. The seed is printed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest

from modelcache.agent import Engine
from modelcache.domain.manifests import BlobId
from modelcache.domain.refs import parse_ref
from modelcache.store import BlobState, Store
from modelcache.store.journal import Journal
from tests.agent.support import CHUNK_BYTES, random_bytes, settings, tree
from tests.servers.faults import Fault, FaultProxy
from tests.servers.nginx import Nginx

CRASHES = int(os.environ.get("MODELCACHE_CRASHES", "50"))
SEED = int(os.environ.get("MODELCACHE_SEED", "20"))
LARGE = {f"weights-{n}.bin": random_bytes(3 * CHUNK_BYTES + 777 * n, n) for n in range(3)}
SMALL = {f"small/file-{n:03d}.json": random_bytes(500 + n, 100 + n) for n in range(60)}
SMALL_MAX = 1000
CONTENT = {**LARGE, **SMALL}
# Slow enough that a kill has something to hit, quick enough for fifty of them.
SLOW = Fault(bytes_s=60e6)

_CHILD = """
import sys
from pathlib import Path
from modelcache.agent import Engine
from modelcache.domain.refs import parse_ref
from tests.agent.support import settings
print("ready", flush=True)
with Engine(settings(Path(sys.argv[2]))) as engine:
    print(engine.pull(parse_ref(sys.argv[1])).path, flush=True)
"""


@pytest.fixture
def origin(web: tuple[Nginx, Path]) -> Iterator[FaultProxy]:
    server, root = web
    for name, data in CONTENT.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    with FaultProxy(server.url, lambda _: SLOW) as proxy:
        yield proxy


def start(url: str, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, url, str(store)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finished(store: Path) -> dict[tuple[str, int], bytes]:
    """Every chunk that the store claims to have, read from where it lies."""
    found: dict[tuple[str, int], bytes] = {}
    # A journal without data: renamed into blobs/ just before the kill.
    for path in (store / "partial").glob("*/data"):
        name = path.parent.name
        data = path.read_bytes()
        for size in {len(content) for content in LARGE.values()}:
            journal = Journal.open(path.with_name("journal"), BlobId(name), size)
            if journal is None:
                continue
            for chunk in journal.records:
                span = journal.grid.span(chunk)
                found[name, chunk] = data[span.start : span.end]
            journal.close()
    for path in (store / "blobs").glob("*/origin-*"):
        if not path.name.endswith(".receipt"):
            data = path.read_bytes()
            for chunk, start in enumerate(range(0, len(data), CHUNK_BYTES)):
                found[path.name, chunk] = data[start : start + CHUNK_BYTES]
    return found


def check_nothing_wrong_is_visible(store: Path) -> None:
    opened = Store.open(settings(store).store, write=False)
    for path in (store / "blobs").glob("*/origin-*"):
        if not path.name.endswith(".receipt"):
            assert path.read_bytes() in CONTENT.values()
            assert opened.blob_state(BlobId(path.name)) is BlobState.INTACT
    for path in (store / "snapshots").glob("[!.]*"):
        assert tree(path) == CONTENT


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_pull_loses_no_finished_chunk(origin: FaultProxy, tmp_path: Path) -> None:
    print(f"seed {SEED}, {CRASHES} crashes")
    source = random.Random(SEED)
    url = f"{origin.url}/"
    store = tmp_path / "store-0"
    kills = rounds = 0
    while kills < CRASHES:
        child = start(url, store)
        sleep(source.uniform(0.0, 0.5))
        killed = child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
        kills += killed
        if store.exists():
            check_nothing_wrong_is_visible(store)
        if killed and source.random() < 0.7:
            continue  # kill the next one over the same store
        before = finished(store) if store.exists() else {}
        asked = len(origin.requests)
        with Engine(settings(store)) as engine:
            snapshot = engine.pull(parse_ref(url))
        assert tree(snapshot.path) == CONTENT
        large_kept = sum(len(data) for data in before.values() if len(data) > SMALL_MAX)
        fetched = sum(
            request.span[1] - request.span[0]
            for request in origin.requests[asked:]
            if request.span and request.method == "GET"
        )
        assert fetched <= sum(map(len, LARGE.values())) - large_kept, "fetched a finished chunk"
        rounds += 1
        store = tmp_path / f"store-{rounds}"
    assert rounds
