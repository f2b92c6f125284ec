"""`csi`: the driver that lets pods mount models. `volumes`: what is published on this node."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from modelcache.errors import UsageError
from modelcache.main.app import Json, app, say
from modelcache.main.wanting import Agent

if TYPE_CHECKING:
    from modelcache.client import AgentClient

SOCKET: Final = Path("/csi/csi.sock")
NODE_VARIABLE: Final = "MODELCACHE_AGENT_NODE"


@app.command()
def csi(
    socket: Annotated[
        Path, typer.Option("--socket", metavar="PATH", help="Where kubelet asks.")
    ] = SOCKET,
    node: Annotated[
        str | None,
        typer.Option(
            "--node", metavar="NAME", help=f"Name of the Kubernetes node; or ${NODE_VARIABLE}."
        ),
    ] = None,
    agent: Agent = None,
    *,
    controller: Annotated[
        bool,
        typer.Option("--controller", help="Serve PersistentVolumes for the cluster; no agent."),
    ] = False,
) -> None:
    """Run the CSI driver: kubelet has pods' models mounted by it, and the agent does the work.

    It keeps nothing and may be restarted at any time.
    """
    from modelcache.main.extras import needs_extra  # noqa: PLC0415 - see the package

    with needs_extra():
        from csi.controller import Controller  # noqa: PLC0415
        from csi.identity import Identity  # noqa: PLC0415
        from csi.node import Node  # noqa: PLC0415
        from csi.serve import serving  # noqa: PLC0415

        services: dict[str, object] = {}
        if controller:
            services = {"Identity": Identity(None, controller=True), "Controller": Controller()}
        else:
            name = node or os.environ.get(NODE_VARIABLE)
            if not name:
                raise UsageError(f"which node is this? Give --node NAME, or set {NODE_VARIABLE}")
            client = _client(agent)
            services = {
                "Identity": Identity(client, controller=False),
                "Node": Node(client, name),
            }
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        with serving(socket, services):
            say(f"csi driver listens on {socket}")
            ended.wait()


@app.command()
def volumes(agent: Agent = None, *, as_json: Json = False) -> None:
    """List the volumes that are published on the agent's node."""
    from modelcache.faces import present  # noqa: PLC0415 - see the package
    from modelcache.main.extras import needs_extra  # noqa: PLC0415

    with needs_extra():
        from modelcache.client import find_agent  # noqa: PLC0415

        with find_agent(agent) as client:
            found = client.volumes()
    if as_json:
        present.print_json([volume.to_json() for volume in found])
        return
    if not found:
        say("no volumes are published here")
    for volume in found:
        within = f"/{volume.sub_path}" if volume.sub_path else ""
        typer.echo(f"{volume.model_id[:12]}  {volume.ref}{within}  {volume.target}")


def _client(agent: str | None) -> AgentClient:
    """An agent that may not be there yet: it is asked when somebody needs it."""
    from modelcache.client import AgentClient  # noqa: PLC0415
    from modelcache.client.finding import AGENT_VARIABLE  # noqa: PLC0415
    from modelcache.domain.listening import default_socket  # noqa: PLC0415

    address = agent or os.environ.get(AGENT_VARIABLE)
    return AgentClient(address or default_socket(os.geteuid(), os.environ.get("XDG_RUNTIME_DIR")))
