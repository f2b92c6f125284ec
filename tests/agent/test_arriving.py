"""Reading what is still on its way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from modelcache.agent import Engine
from modelcache.agent.arriving import Audience
from modelcache.domain.manifests import File, Manifest
from modelcache.domain.ranges import ByteRange
from modelcache.domain.refs import parse_ref
from modelcache.errors import Cancelled, NotYet
from tests.agent.support import CHUNK_BYTES, random_bytes, settings
from tests.servers.faults import Fault, FaultProxy, Request
from tests.servers.nginx import Nginx

WAIT_S = 30.0
CHUNKS = 12
DATA = random_bytes(CHUNKS * CHUNK_BYTES + 777)
CONFIG = b'{"hidden_size": 8}'


@pytest.fixture
def proxy(web: tuple[Nginx, Path]) -> Iterator[FaultProxy]:
    server, root = web
    (root / "weights.bin").write_bytes(DATA)
    (root / "config.json").write_bytes(CONFIG)
    with FaultProxy(server.url) as running:
        yield running


def all_but(*chunks: int):
    """A plan: of the weights only these chunks come."""

    def plan(request: Request) -> Fault | None:
        if request.span is None or not request.path.endswith("weights.bin"):
            return None
        held = request.span[0] // CHUNK_BYTES not in chunks
        return Fault(stall_at=0) if held else None

    return plan


@contextmanager
def pulling(engine: Engine, url: str, audience: Audience | None = None) -> Iterator[Manifest]:
    """A pull in a thread of its own, from when it is known what comes until the end of the test."""
    cancel, known = threading.Event(), threading.Event()
    found: list[Manifest] = []
    attended: list[object] = []

    def resolved(manifest: Manifest) -> None:
        found.append(manifest)
        if audience is not None:
            weights = file_of(manifest, "weights.bin")
            audience.first = [
                (weights.blob, ByteRange(start * CHUNK_BYTES, start * CHUNK_BYTES + 1))
                for start in (9, 5)
            ]
            attended.append(engine.arriving.attended(audience))
            attended[0].__enter__()
        known.set()

    def run() -> None:
        with suppress(Cancelled):
            engine.pull(parse_ref(f"{url}/"), cancel=cancel, resolved=resolved)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert known.wait(WAIT_S)
        yield found[0]
    finally:
        cancel.set()
        thread.join(WAIT_S)
        assert not thread.is_alive()
        for each in attended:
            each.__exit__(None, None, None)


def file_of(manifest: Manifest, name: str) -> File:
    return next(file for file in manifest.files if file.path == name)


def read(engine: Engine, file: File, start: int, size: int, timeout_s: float = WAIT_S) -> bytes:
    buffer = bytearray(size)
    engine.arriving.wait(file, start, memoryview(buffer), timeout_s=timeout_s)
    return bytes(buffer)


@pytest.mark.parametrize("io", ["direct", "buffered"])
def test_a_reader_gets_a_chunk_out_of_the_middle_while_all_others_hang(
    proxy: FaultProxy, tmp_path: Path, io: str
):
    proxy.plan = all_but(7, 8)
    chosen = settings(tmp_path / "store", io=io, connections_start=2, stall_timeout_s=60.0)
    with Engine(chosen) as engine, pulling(engine, proxy.url) as manifest:
        weights = file_of(manifest, "weights.bin")
        start = 8 * CHUNK_BYTES - 5000  # over the border of both
        assert read(engine, weights, start, 10_000) == DATA[start : start + 10_000]
        with pytest.raises(NotYet, match=r"weights\.bin \[0, 10\)"):
            read(engine, weights, 0, 10, timeout_s=0.0)
        assert not engine.arriving.read(weights, 9 * CHUNK_BYTES - 10, memoryview(bytearray(20)))


def test_a_small_file_can_be_read_before_the_group_that_it_came_in_is_committed(
    proxy: FaultProxy, tmp_path: Path
):
    proxy.plan = all_but()
    chosen = settings(tmp_path / "store", stall_timeout_s=60.0)
    with Engine(chosen) as engine, pulling(engine, proxy.url) as manifest:
        config = file_of(manifest, "config.json")
        assert read(engine, config, 0, len(CONFIG)) == CONFIG
        assert not engine.store.has_blob(config.blob, config.size_bytes)


def test_what_somebody_needs_first_is_asked_for_first(proxy: FaultProxy, tmp_path: Path):
    news = threading.Event()
    chosen = settings(tmp_path / "store", connections_start=1, connections_max=1)
    audience = Audience(news.set, lambda _: None)
    with Engine(chosen) as engine, pulling(engine, proxy.url, audience) as manifest:
        weights = file_of(manifest, "weights.bin")
        while not engine.arriving.is_complete(weights):
            assert news.wait(WAIT_S)
            news.clear()
        spans = [request.span for request in proxy.gets("weights.bin") if request.span is not None]
        asked = [span[0] // CHUNK_BYTES for span in spans if span[1] - span[0] > 1]
        assert asked[:2] == [9, 5]


def test_what_was_brought_is_read_from_its_blob_when_the_pull_is_over(
    proxy: FaultProxy, tmp_path: Path
):
    with Engine(settings(tmp_path / "store")) as engine:
        snapshot = engine.pull(parse_ref(f"{proxy.url}/"))
        weights = file_of(engine.store.manifest(snapshot.model_id), "weights.bin")
        assert read(engine, weights, 0, len(DATA)) == DATA
        engine.store.layout.blob(weights.blob).unlink()
        assert not engine.arriving.read(weights, 0, memoryview(bytearray(1)))


def test_what_a_pull_has_left_can_be_read_and_nothing_else_of_it(proxy: FaultProxy, tmp_path: Path):
    proxy.plan = all_but(7)
    chosen = settings(tmp_path / "store", stall_timeout_s=60.0)
    with Engine(chosen) as engine, pulling(engine, proxy.url) as manifest:
        weights = file_of(manifest, "weights.bin")
        read(engine, weights, 7 * CHUNK_BYTES, 1)
    with Engine(chosen) as engine:  # nobody brings anything
        start = 7 * CHUNK_BYTES
        assert read(engine, weights, start, CHUNK_BYTES) == DATA[start : start + CHUNK_BYTES]
        assert not engine.arriving.read(weights, start - 1, memoryview(bytearray(2)))
        (engine.store.layout.partial_blob(weights.blob) / "journal").write_bytes(b"damaged")
        assert not engine.arriving.read(weights, start, memoryview(bytearray(2)))
