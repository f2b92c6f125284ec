"""Nodes for tests: over a fresh store, with what their origin serves and what happened on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from modelcache.agent import Engine
from modelcache.agent.events import Event, EventKind
from modelcache.agent.node import Node
from modelcache.config import Settings
from modelcache.domain.refs import Ref, parse_ref
from modelcache.domain.wanted import ModelPhase, WantedStatus
from tests.agent.support import CHUNK_BYTES, random_bytes, settings
from tests.servers.faults import FaultProxy, Plan, never

WAIT_S = 30.0
MIB = 1 << 20


def node_settings(store: Path, transfer: dict[str, Any] | None = None, **agent: Any) -> Settings:
    """Small chunks and quick timeouts; `agent` are settings of that group."""
    base = settings(store, **(transfer or {}))
    return replace(base, agent=replace(base.agent, **agent))


@contextmanager
def running(chosen: Settings, name: str = "node-1") -> Iterator[Node]:
    """A node that works."""
    with Engine(chosen) as engine:
        node = Node(chosen, engine, name=name)
        node.start()
        try:
            yield node
        finally:
            node.close()


class Models:
    """Models below one web root, each behind a proxy of its own, to be held up one by one."""

    def __init__(self, url: str, root: Path) -> None:
        self._url = url
        self._root = root
        self._proxies: list[FaultProxy] = []

    def add(self, name: str, size_bytes: int = 5 * CHUNK_BYTES, plan: Plan = never) -> FaultProxy:
        folder = self._root / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(random_bytes(size_bytes, len(self._proxies)))
        proxy = FaultProxy(self._url, plan)
        proxy.__enter__()
        self._proxies.append(proxy)
        return proxy

    def close(self) -> None:
        for proxy in self._proxies:
            proxy.__exit__()


def ref_to(proxy: FaultProxy, name: str) -> Ref:
    return parse_ref(f"{proxy.url}/{name}/")


def wait_for(node: Node, ref: Ref, holds: Callable[[WantedStatus], object]) -> WantedStatus:
    """The first status that holds; fails when there is none in time."""
    until_s = monotonic() + WAIT_S
    board = node._board
    with board.changed:
        while True:
            status = node.status(ref)
            if holds(status):
                return status
            assert monotonic() < until_s, status
            board.changed.wait(0.2)


def wait_phase(node: Node, ref: Ref, phase: ModelPhase) -> WantedStatus:
    return wait_for(node, ref, lambda status: status.phase is phase)


def wait_event(node: Node, kind: EventKind, after: int = 0) -> Event:
    """The first event of a kind."""
    until_s = monotonic() + WAIT_S
    board = node._board
    while True:
        found = [event for event in node.events.after(after)[0] if event.kind is kind]
        if found:
            return found[0]
        assert monotonic() < until_s, node.events.after(0)[0]
        with board.changed:
            board.changed.wait(0.2)
