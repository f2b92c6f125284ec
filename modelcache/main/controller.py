"""`controller`: what is warm where, written on nodes and pods; one of several replicas works."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import Annotated, Final

import typer

from modelcache.domain.listening import parse_listen
from modelcache.main.app import Config, LogFormat, LogLevel, app, settings_for

LISTEN: Final = "[::]:9873"
LEASE: Final = "modelcache-controller"
NAMESPACE_VARIABLE: Final = "POD_NAMESPACE"


@app.command()
def controller(  # noqa: PLR0917 - one parameter for each option
    config: Config = None,
    kubeconfig: Annotated[
        str | None, typer.Option("--kubeconfig", metavar="FILE", help="How to reach the cluster.")
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace", metavar="NAME", help=f"Of the leader's Lease; or ${NAMESPACE_VARIABLE}."
        ),
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option("--identity", metavar="NAME", help="This replica; default: the host's name."),
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Probes and metrics; '' for none.")
    ] = LISTEN,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Run the cluster's controller: node labels, pods' gates and conditions, ModelPrefetch status.

    It ends when leadership is lost, to be started anew.
    """
    from modelcache.main.extras import needs_extra  # noqa: PLC0415 - see the package
    from modelcache.main.logs import logger_for  # noqa: PLC0415

    with needs_extra():
        from modelcache.faces.controller.controlling import Controlling  # noqa: PLC0415
        from modelcache.faces.controller.health import Health  # noqa: PLC0415
        from modelcache.faces.controller.leading import Leading  # noqa: PLC0415
        from modelcache.faces.controller.showing import showing  # noqa: PLC0415
        from modelcache.faces.kubernetes.connect import connect  # noqa: PLC0415
        from modelcache.faces.webhook.serving import bind  # noqa: PLC0415

        settings = settings_for(
            None,
            config,
            {
                "--kubeconfig": ("kubernetes.kubeconfig", kubeconfig),
                "--log-format": ("agent.log_format", log_format),
                "--log-level": ("agent.log_level", log_level),
            },
        )
        health = Health()
        log = logger_for(settings.agent)
        client = connect(settings.kubernetes.kubeconfig)
        leading = Leading(
            client,
            name=LEASE,
            namespace=namespace or os.environ.get(NAMESPACE_VARIABLE) or client.namespace,
            me=identity or f"{os.uname().nodename}-{os.getpid()}",
            log=log,
            asked=lambda heard: health.asked(heard=heard),
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: leading.stop())
        with ExitStack() as stack:
            port = 0
            if listen:
                listener = stack.enter_context(bind(*parse_listen(listen)))
                port = listener.getsockname()[1]
                stack.enter_context(showing(health, listener))
            log.info("controller_ready", lease=LEASE, port=port)
            leading.run(Controlling(client, log=log, health=health).lead)
        client.close()
        log.info("controller_stopped")
