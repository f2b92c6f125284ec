"""A cell of nodes in this process: real stores, real peer planes on loopback, one origin."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modelcache.agent import Engine, Snapshot
from modelcache.agent.control import PullControl
from modelcache.agent.swarm import Swarm
from modelcache.config import Settings, load_settings
from modelcache.domain.refs import parse_ref
from modelcache.errors import ModelcacheError
from tests.agent.support import CHUNK_BYTES, random_bytes
from tests.servers.faults import FaultProxy, Plan, never
from tests.servers.nginx import Nginx
from tests.servers.process import free_port

WAIT_S = 50.0


@dataclass
class Origin:
    """nginx behind a proxy that counts; `index` is a ref whose files have SHA-256 names."""

    folder: Path
    proxy: FaultProxy

    @property
    def plain(self) -> str:
        """A ref without checksums."""
        return f"{self.proxy.url}/model/"

    @property
    def index(self) -> str:
        """A ref whose files have checksums."""
        return f"{self.proxy.url}/index.json#index=1"

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in (self.folder / "model").iterdir())

    def chunks_read(self, name: str) -> list[int]:
        """First bytes of the ranges of one file that were asked for, sorted."""
        return sorted(request.span[0] for request in self.proxy.gets(name) if request.span)


@contextmanager
def origin(folder: Path, files: dict[str, int], plan: Plan = never) -> Iterator[Origin]:
    """Files of these sizes, with content of their own."""
    model = folder / "model"
    model.mkdir(parents=True)
    entries = []
    for seed, (name, size) in enumerate(files.items()):
        data = random_bytes(size, seed)
        (model / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        entries.append({"path": name, "size": size, "sha256": digest, "url": f"model/{name}"})
    (folder / "index.json").write_text(json.dumps({"files": entries}))
    with Nginx(folder) as server, FaultProxy(server.url, plan) as proxy:
        yield Origin(folder, proxy)


@dataclass
class CellNode:
    """One node, and what became of its pull."""

    name: str
    engine: Engine
    swarm: Swarm
    snapshot: Snapshot | None = None
    error: ModelcacheError | None = None
    control: PullControl | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def begin(self, ref: str) -> None:
        """Pull beside the caller."""
        self.cancel.clear()
        self.thread = threading.Thread(target=self._pull, args=(ref,), daemon=True)
        self.thread.start()

    def _pull(self, ref: str) -> None:
        try:
            self.snapshot = self.engine.pull(
                parse_ref(ref), cancel=self.cancel, control=self.control
            )
        except ModelcacheError as error:
            self.error = error

    def end(self) -> Snapshot:
        """Wait for the pull; raise what it raised."""
        assert self.thread is not None
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), f"{self.name} does not come to an end"
        if self.error is not None:
            raise self.error
        assert self.snapshot is not None
        return self.snapshot

    def came_from(self) -> dict[str, int]:
        """Bytes by source, of the last pull; origins under `origin`."""
        assert self.snapshot is not None
        assert self.snapshot.report is not None
        came: dict[str, int] = {}
        for source, report in self.snapshot.report.sources.items():
            name = source if source.startswith("peer:") else "origin"
            came[name] = came.get(name, 0) + report.received_bytes
        return came


def settings_of(
    store: Path, name: str, port: int, members: Sequence[str], **more: dict[str, Any]
) -> Settings:
    """Of one node. more: fields by group."""
    base = load_settings(environment={})
    base = replace(
        base,
        store=replace(base.store, path=store, chunk_bytes=CHUNK_BYTES),
        transfer=replace(base.transfer, stall_timeout_s=5.0),
        agent=replace(base.agent, node=name),
        peers=replace(base.peers, listen=f"127.0.0.1:{port}", members=tuple(members), wait_s=3.0),
        swarm=replace(base.swarm, announce_s=0.2),
    )
    for group, fields in more.items():
        base = replace(base, **{group: replace(getattr(base, group), **fields)})
    return base


@contextmanager
def cell(folder: Path, *names: str, **more: dict[str, Any]) -> Iterator[tuple[CellNode, ...]]:
    """Nodes of these names, all started."""
    ports = [free_port() for _ in names]
    members = [f"127.0.0.1:{port}" for port in ports]
    with ExitStack() as stack:
        nodes = []
        for name, port in zip(names, ports, strict=True):
            store = folder / (name if names.count(name) == 1 else f"{name}-{port}")
            settings = settings_of(store, name, port, members, **more)
            engine = stack.enter_context(Engine(settings))
            swarm = Swarm(settings, engine)
            swarm.start()
            stack.callback(swarm.close)
            node = CellNode(name, engine, swarm)
            stack.callback(node.cancel.set)
            nodes.append(node)
        yield tuple(nodes)


def pull_together(nodes: Sequence[CellNode], ref: str) -> list[Snapshot]:
    """All at once."""
    for node in nodes:
        node.begin(ref)
    return [node.end() for node in nodes]
