"""Kill a process that pulls a packed model, at random moments: the next pull ends as any would.

The children are forked, so that they resolve to the same packed manifest. The seed is printed.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from time import sleep

import pytest

from modelcache.domain.archives import Compression
from modelcache.store import Store
from tests.agent.archives import Layer, PackedOrigin, packed, packed_settings, tar_of, use
from tests.agent.support import CHUNK_BYTES, random_bytes, tree
from tests.servers.faults import Fault, FaultProxy
from tests.servers.nginx import Nginx
from tests.store.processes import fork
from tests.store.support import collect

CRASHES = int(os.environ.get("MODELCACHE_CRASHES", "16"))
SEED = int(os.environ.get("MODELCACHE_SEED", "21"))
CONTENT = {
    **{f"weights-{n}.bin": random_bytes(CHUNK_BYTES + 777 * n, n) for n in range(4)},
    **{f"small/file-{n:03d}.json": random_bytes(500 + n, 100 + n) for n in range(200)},
}
SLOW = Fault(bytes_s=60e6)


@pytest.fixture
def origin(web: tuple[Nginx, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[PackedOrigin]:
    with FaultProxy(web[0].url, lambda _: SLOW) as proxy:
        origin = PackedOrigin(proxy.url, web[1], [], {})
        names = sorted(CONTENT)
        halves = [{name: CONTENT[name] for name in names[at::2]} for at in range(2)]
        origin.serve(*(Layer(packed(tar_of(half), Compression.GZIP)) for half in halves))
        use(origin, monkeypatch)
        yield origin


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_pull_of_a_packed_model_leaves_nothing_wrong(origin, tmp_path):
    print(f"seed {SEED}, {CRASHES} crashes")
    source = random.Random(SEED)
    path = tmp_path / "store-0"
    kills = rounds = 0
    while kills < CRASHES:
        pid = fork(lambda: origin.pull(path))  # noqa: B023 - called before the next round
        sleep(source.uniform(0.05, 1.0))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        kills += os.WIFSIGNALED(status)
        for snapshot in (path / "snapshots").glob("[!.]*"):
            assert tree(snapshot) == CONTENT
        if source.random() < 0.6:
            continue  # kill the next one over the same store
        check_ends_as_any(origin, path)
        rounds += 1
        path = tmp_path / f"store-{rounds}"
    check_ends_as_any(origin, path)


def check_ends_as_any(origin: PackedOrigin, path: Path) -> None:
    assert tree(origin.pull(path).path) == CONTENT
    store = Store.open(packed_settings(path).store)
    collect(store)
    (model_id,) = store.model_ids()
    blobs = set(store.manifest(model_id).blobs())
    found = {file.name for file in (path / "blobs").glob("*/*") if file.suffix != ".receipt"}
    assert found == blobs
    assert not list((path / "partial").iterdir())
    assert not list((path / "trash").iterdir())
    assert not list((path / "layers").glob("*.lock"))
