"""Whole transfers over real sockets: who is blamed, what is bounded, what is never mixed."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit

import pytest

from modelcache.agent import Engine
from modelcache.config import BLOCK_BYTES
from modelcache.domain.ranges import MIB
from modelcache.domain.refs import parse_ref
from modelcache.errors import Cancelled, Forbidden, ModelcacheError, OriginChanged
from tests.agent.support import CHUNK_BYTES, random_bytes, settings, tree
from tests.servers.faults import Fault, FaultProxy, Request
from tests.servers.nginx import Nginx
from tests.sources.scripted import Asked, Reply, ScriptedServer, StaticFile

LARGE = random_bytes(4 * CHUNK_BYTES + 99, 21)
MANY = {f"part-{number:03}": random_bytes(1000 + number, number) for number in range(60)}


def index(files: dict[str, bytes]) -> bytes:
    """A JSON index of these files, as nginx makes one."""
    items = ",".join(
        f'{{"name": "{name}", "type": "file", "size": {len(data)}, '
        f'"mtime": "Tue, 24 Nov 2026 00:00:00 GMT"}}'
        for name, data in files.items()
    )
    return f"[{items}]".encode()


def serve(server: ScriptedServer, files: dict[str, bytes]) -> str:
    """Put files below /m/; returns its URL."""
    server.answers["/m/"] = lambda _: Reply(
        headers={"Content-Type": "application/json"}, body=index(files)
    )
    for name, data in files.items():
        server.answers[f"/m/{name}"] = StaticFile(data, {"ETag": f'"{name}"'})
    return server.url("/m/")


def pull(url: str, store: Path, **transfer: float) -> dict[str, bytes]:
    with Engine(settings(store, **transfer)) as engine:
        return tree(engine.pull(parse_ref(url)).path)


# Who is at fault


@pytest.mark.parametrize("bad", ["part-000", "part-031", "part-059"])
def test_the_one_small_file_that_is_refused_is_named(tmp_path: Path, bad: str):
    """Many requests are under way at once, and most of them have nothing to do with it."""
    with ScriptedServer() as server:
        url = serve(server, MANY)
        server.answers[f"/m/{bad}"] = lambda _: Reply(403)
        with pytest.raises(Forbidden, match=bad):
            pull(url, tmp_path)
        server.answers[f"/m/{bad}"] = StaticFile(MANY[bad], {"ETag": f'"{bad}"'})
        assert pull(url, tmp_path) == MANY


def test_the_one_large_file_that_is_refused_is_named(tmp_path: Path):
    with ScriptedServer() as server:
        files = {"a": LARGE, "b": LARGE[::-1], **MANY}
        url = serve(server, files)
        good = server.answers["/m/b"]
        server.answers["/m/b"] = lambda asked: good(asked) if asked.method == "HEAD" else Reply(403)
        with pytest.raises(Forbidden, match="/b"):
            pull(url, tmp_path)


# Bodies that are not what was listed


@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
@pytest.mark.parametrize("more", [1, BLOCK_BYTES])
def test_a_body_that_goes_on_is_no_file(tmp_path: Path, size: int, more: int):
    """Announced without a length, so that only reading to the end can tell."""
    content = LARGE[:size]

    def longer(asked: Asked) -> Reply:
        if asked.method == "HEAD" or "range" in asked.headers:
            return StaticFile(content, {"ETag": '"x"'}, ranges=False)(asked)
        return Reply(headers={"ETag": '"x"'}, body=content + b"!" * more, length=None)

    with ScriptedServer() as server:
        server.answers["/x"] = longer
        with pytest.raises(OriginChanged, match="longer than the"):
            pull(server.url("/x"), tmp_path)
    assert not any((tmp_path / "snapshots").iterdir())


@pytest.mark.parametrize("size", [1000, len(LARGE)], ids=["small", "large"])
def test_a_body_that_ends_early_is_no_file(tmp_path: Path, size: int):
    content = LARGE[:size]

    def shorter(asked: Asked) -> Reply:
        if asked.method == "HEAD":
            return Reply(headers={"ETag": '"x"'}, body=content)
        return Reply(headers={"ETag": '"x"'}, body=content[:-1], length=None)

    with ScriptedServer() as server:
        server.answers["/x"] = shorter
        with pytest.raises(ModelcacheError):
            pull(server.url("/x"), tmp_path, retries_max=1)
    assert not any((tmp_path / "snapshots").iterdir())


def test_a_stream_without_ranges_begins_anew_after_a_failure(tmp_path: Path):
    file = StaticFile(LARGE, {"ETag": '"x"'}, ranges=False)
    failures = [3 * MIB, 100, 9 * MIB]

    def breaking(asked: Asked) -> Reply:
        reply = file(asked)
        if asked.method == "GET" and failures:
            reply.body, reply.length = reply.body[: failures.pop()], len(LARGE)
        return reply

    with ScriptedServer() as server:
        server.answers["/x"] = breaking
        assert pull(server.url("/x"), tmp_path) == {"x": LARGE}
    assert not failures


# Bounds


@pytest.mark.parametrize("limit", ["connections_max", "connections_per_host_max"])
@pytest.mark.parametrize("kind", ["large", "small"])
def test_no_more_connections_than_allowed(
    web: tuple[Nginx, Path], tmp_path: Path, kind: str, limit: str
):
    server, root = web
    files = MANY if kind == "small" else {"x": LARGE * 2, "y": LARGE}
    for name, data in files.items():
        (root / name).write_bytes(data)
    seen: list[int] = []
    with FaultProxy(server.url) as proxy:
        speed = 30e6 if kind == "large" else 4e4
        proxy.plan = lambda request: Fault(bytes_s=speed) if len(request.path) > 1 else None
        port = urlsplit(proxy.url).port or 0
        with Engine(settings(tmp_path / "store", **{limit: 3})) as engine:
            report = engine.pull(
                parse_ref(f"{proxy.url}/"), progress=lambda _: seen.append(connections_to(port))
            ).report
    assert report.connections_peak <= 3
    assert 1 <= max(seen) <= 3


def connections_to(port: int) -> int:
    """Established connections of this machine to a port of its own (proc_pid_net(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


MEASURE = """
import resource, sys
import modelcache
modelcache.pull(sys.argv[1], store=sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def test_memory_does_not_grow_with_the_model(web: tuple[Nginx, Path], tmp_path: Path):
    """MiB of a process that pulls 8 MiB, and of one that pulls 400, with 32 MiB of buffers."""
    server, root = web
    peaks = []
    for number, size in enumerate([8 * MIB, 400 * MIB]):
        with (root / f"{number}").open("wb") as file:
            file.truncate(size)
        environment = {
            "PATH": "",
            "HOME": str(tmp_path),
            "MODELCACHE_TRANSFER_MEMORY_BYTES": "32MiB",
        }
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, f"{server.url}/{number}", tmp_path / f"s{number}"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 48, peaks


def test_a_bandwidth_limit_is_kept(web: tuple[Nginx, Path], tmp_path: Path):
    """From below only: a slow machine cannot fail this."""
    limit_bytes_s = 8_000_000
    server, root = web
    (root / "x").write_bytes(LARGE)
    started_s = monotonic()
    got = pull(f"{server.url}/x", tmp_path / "store", bandwidth_limit_bytes_s=limit_bytes_s)
    assert got == {"x": LARGE}
    assert monotonic() - started_s > len(LARGE) / limit_bytes_s - 0.5


# Stopping


@pytest.mark.parametrize("where", ["small", "large"])
def test_a_transfer_that_waits_for_a_silent_origin_can_be_cancelled(tmp_path: Path, where: str):
    files = MANY if where == "small" else {"x": LARGE}
    gate = threading.Event()

    with ScriptedServer() as server:
        url = serve(server, files)
        for name in files:
            server.answers[f"/m/{name}"] = _silent(server.answers[f"/m/{name}"], gate)
        cancel = threading.Event()
        threading.Timer(0.3, cancel.set).start()
        started_s = monotonic()
        quiet = settings(tmp_path, stall_timeout_s=30.0)
        with Engine(quiet) as engine, pytest.raises(Cancelled):
            engine.pull(parse_ref(url), cancel=cancel)
        assert monotonic() - started_s < 15.0
        gate.set()


def _silent(answer: Callable[[Asked], Reply], gate: threading.Event) -> Callable[[Asked], Reply]:
    def wait(asked: Asked) -> Reply:
        if asked.method == "GET":
            gate.wait(30.0)
        return answer(asked)

    return wait


# Hedges


def test_a_hedge_replaces_what_its_twin_has_half_written(web: tuple[Nginx, Path], tmp_path: Path):
    """The slow one drips wrong bytes into the very chunk that the fast one brings whole."""
    server, root = web
    (root / "x").write_bytes(LARGE)
    seen: Counter[tuple[int, int]] = Counter()
    guard = threading.Lock()

    def plan(request: Request) -> Fault | None:
        if request.span is None or request.span[1] <= 3 * CHUNK_BYTES:
            return None
        with guard:
            seen[request.span] += 1
            return Fault(bytes_s=3e5, flip_at=1) if seen[request.span] == 1 else None

    with FaultProxy(server.url) as proxy, Engine(settings(tmp_path / "store")) as engine:
        proxy.plan = plan
        snapshot = engine.pull(parse_ref(f"{proxy.url}/x"))
        got = (snapshot.path / "x").read_bytes()
    hedged = [span for span, times in seen.items() if times > 1]
    assert hedged
    for start, end in hedged:
        assert got[start:end] == LARGE[start:end]
