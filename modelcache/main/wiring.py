"""What the agent is made of, put together: engine, peers, node, application, sockets."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelcache.agent import Engine
from modelcache.agent.daemon import Daemon, Neighbourhood
from modelcache.domain.listening import parse_listen
from modelcache.faces.http import Guard, create_app
from modelcache.faces.http.guard import token_file
from modelcache.faces.http.sockets import bind_tcp, bound_unix
from modelcache.faces.http.streaming import Closing

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from modelcache.config import Settings
    from modelcache.faces.logs import Log
    from modelcache.faces.watcher.cluster import Cluster
    from modelcache.peers.membership import Membership


@dataclass(frozen=True, slots=True)
class Assembled:
    """All of it, with nothing begun yet but the sockets, which are bound. tcp: host and port."""

    daemon: Daemon
    closing: Closing
    faces: list[tuple[ASGIApp, socket.socket]]
    tcp: tuple[str, int] | None
    cluster: Cluster | None = None


@contextmanager
def assembled(settings: Settings, log: Log | None = None) -> Iterator[Assembled]:
    """Everything, for as long as this is entered. Raises InvalidConfig, StoreError."""
    agent = settings.agent
    token = token_file(Path(agent.tcp_token_file)) if agent.tcp_token_file else None
    with ExitStack() as stack:
        unix = stack.enter_context(bound_unix(agent.socket.expanduser().absolute()))
        tcp = bind_tcp(*parse_listen(agent.listen)) if agent.listen else None
        if tcp is not None:
            stack.enter_context(tcp)
        engine = stack.enter_context(Engine(settings))
        membership = stack.enter_context(members_of(settings, log))
        neighbours = neighbours_for(settings, engine, membership)
        daemon = Daemon(settings, engine, name=settings.agent.node_id(), neighbours=neighbours)
        closing = Closing()
        app = create_app(daemon, closing)
        faces: list[tuple[ASGIApp, socket.socket]] = [(Guard(app), unix)]
        if tcp is not None:
            faces.append((Guard(app, changes=token is not None, token=token), tcp))
        bound = tcp.getsockname()[:2] if tcp is not None else None
        yield Assembled(daemon, closing, faces, bound, cluster_for(settings, daemon, log))


def cluster_for(settings: Settings, daemon: Daemon, log: Log | None) -> Cluster | None:
    """The node's cluster; None outside of one. Raises InvalidConfig."""
    if not settings.kubernetes.enabled:
        return None
    from modelcache.faces.watcher.cluster import Cluster  # noqa: PLC0415 - only where there is one

    return Cluster(daemon, settings.kubernetes, log=log)


@contextmanager
def members_of(settings: Settings, log: Log | None) -> Iterator[Membership | None]:
    """Who is in the cluster, where a Service of it tells; None where settings do, or nobody.

    Raises InvalidConfig.
    """
    service = settings.kubernetes.peers_service if settings.kubernetes.enabled else ""
    if not service:
        yield None
        return
    from modelcache.faces.kubernetes.connect import connect  # noqa: PLC0415 - only in a cluster
    from modelcache.faces.watcher.members import EndpointMembers  # noqa: PLC0415

    _, port = parse_listen(settings.peers.listen)
    members = EndpointMembers(connect(settings.kubernetes.kubeconfig), service, port, log=log)
    members.start()
    try:
        yield members
    finally:
        members.stop()


def neighbours_for(
    settings: Settings, engine: Engine, membership: Membership | None = None
) -> Neighbourhood | None:
    """The node's peers; None where none are named. Raises InvalidConfig."""
    if membership is None and not (settings.peers.members or settings.peers.dns):
        return None
    from modelcache.agent.swarm import Swarm  # noqa: PLC0415 - only where there are peers

    return Swarm(settings, engine, membership)
