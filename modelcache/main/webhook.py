"""`webhook`: the admission webhook, which gives pods with an annotation their models."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from modelcache.errors import UsageError
from modelcache.main.app import LogFormat, LogLevel, app, settings_for
from modelcache.main.certificates import SECRET_SUFFIX, CertificateFile, KeyFile, pair_of

if TYPE_CHECKING:
    import socket

    from lightkube import Client

    from modelcache.faces.webhook.life import Webhook
    from modelcache.faces.webhook.tls import Certificates
    from modelcache.faces.webhook.warmth import Warmth

LISTEN: Final = "[::]:9443"
SYNC_S: Final = 5.0
"""How long the first reviews wait for what nodes have; without it they only lack a preference."""
LINGER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Flags:
    """What was asked for, checked."""

    listen: tuple[str, int]
    files: tuple[Path, Path] | None
    service: str
    namespace: str
    secret: str
    configuration: str
    names: tuple[str, ...]
    kubeconfig: str
    gate: bool
    affinity: bool
    linger_s: float


@app.command()
def webhook(  # noqa: PLR0917 - one parameter for each option
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to answer, over HTTPS.")
    ] = LISTEN,
    cert_file: CertificateFile = None,
    key_file: KeyFile = None,
    service: Annotated[
        str, typer.Option("--service", metavar="NAME", help="Self-signed: the Service in front.")
    ] = "",
    namespace: Annotated[
        str, typer.Option("--namespace", metavar="NS", help="Self-signed: its namespace.")
    ] = "",
    configuration: Annotated[
        str,
        typer.Option(
            "--configuration",
            metavar="NAME",
            help="Self-signed: the MutatingWebhookConfiguration that is to trust us.",
        ),
    ] = "",
    secret: Annotated[
        str,
        typer.Option(
            "--secret",
            metavar="NAME",
            help=f"Self-signed: the Secret that replicas share; default: SERVICE{SECRET_SUFFIX}.",
        ),
    ] = "",
    also: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="HOST", help="Self-signed: a name or address more."),
    ] = None,
    kubeconfig: Annotated[
        str, typer.Option("--kubeconfig", metavar="FILE", help="Cluster; default: this pod's.")
    ] = "",
    linger: Annotated[
        str, typer.Option("--linger", metavar="5s", help="Answer so long after SIGTERM.")
    ] = f"{LINGER_S:.0f}s",
    log_format: LogFormat = None,
    log_level: LogLevel = None,
    *,
    self_signed: Annotated[
        bool, typer.Option("--self-signed", help="Make certificates, and have them trusted.")
    ] = False,
    gate: Annotated[
        bool, typer.Option("--gate", help="Hold pods back until a node has their models.")
    ] = False,
    no_affinity: Annotated[
        bool, typer.Option("--no-affinity", help="Do not watch which nodes have what.")
    ] = False,
) -> None:
    """Run the admission webhook: pods with `modelcache.io/models` get their models as volumes.

    Any number of it may run. It ends in order on SIGTERM.
    """
    from modelcache.main.extras import needs_extra  # noqa: PLC0415
    from modelcache.main.logs import logger_for  # noqa: PLC0415 - see the package

    with needs_extra():
        from modelcache.config import parse_duration  # noqa: PLC0415
        from modelcache.domain.listening import parse_listen  # noqa: PLC0415

        flags = _Flags(
            listen=parse_listen(listen),
            files=_files(cert_file, key_file, self_signed=self_signed),
            service=service,
            namespace=namespace,
            secret=secret or f"{service}{SECRET_SUFFIX}",
            configuration=configuration,
            names=tuple(also or ()),
            kubeconfig=kubeconfig,
            gate=gate,
            affinity=not no_affinity,
            linger_s=parse_duration(linger),
        )
        _check(flags)
        settings = settings_for(
            None,
            None,
            {
                "--log-format": ("agent.log_format", log_format),
                "--log-level": ("agent.log_level", log_level),
            },
        )
        _run(flags, logger_for(settings.agent))


def _files(
    certificate: Path | None, key: Path | None, *, self_signed: bool
) -> tuple[Path, Path] | None:
    files = pair_of(certificate, key, made_by="--self-signed" if self_signed else "")
    if files is None and not self_signed:
        raise UsageError("a webhook needs --cert-file and --key-file, or --self-signed")
    return files


def _check(flags: _Flags) -> None:
    from modelcache.domain.addresses import is_host  # noqa: PLC0415 - see the package

    own = {
        "--service": flags.service,
        "--namespace": flags.namespace,
        "--configuration": flags.configuration,
    }
    if flags.files is None:
        missing = [name for name, value in own.items() if not value]
        if missing:
            raise UsageError(f"--self-signed needs {' and '.join(missing)}")
        wrong = [name for name in (*own.values(), flags.secret, *flags.names) if not is_host(name)]
        if wrong:
            raise UsageError(f"{wrong[0][:80]!r} cannot be the name of anything in a cluster")
    else:
        given = [name for name, value in {**own, "--name": flags.names}.items() if value]
        if given:
            raise UsageError(f"{given[0]} is for --self-signed; with files it means nothing")


def _run(flags: _Flags, log: Any) -> None:  # noqa: ANN401 - structlog's loggers have no one type
    import asyncio  # noqa: PLC0415 - half of what any command would take to start

    from modelcache.faces.kubernetes.connect import connect  # noqa: PLC0415 - see the package
    from modelcache.faces.webhook.life import Webhook  # noqa: PLC0415
    from modelcache.faces.webhook.mutation import Choices  # noqa: PLC0415
    from modelcache.faces.webhook.review import Reviewer  # noqa: PLC0415
    from modelcache.faces.webhook.serving import bind  # noqa: PLC0415

    with ExitStack() as stack:
        client = None
        if flags.affinity or flags.files is None:
            client = stack.enter_context(connect(flags.kubeconfig))
        listener = stack.enter_context(bind(*flags.listen))
        warmth = _warmth(flags, client, log, stack)
        reviewer = Reviewer(Choices(gate=flags.gate), warmth, log)
        made = Webhook(reviewer, _source(flags, client, log), log)
        asyncio.run(_serve(made, listener, flags.linger_s))


async def _serve(made: Webhook, listener: socket.socket, linger_s: float) -> None:
    import asyncio  # noqa: PLC0415 - see above

    from modelcache.main.serving import on_signals  # noqa: PLC0415

    ending = asyncio.Event()
    on_signals(ending.set)
    await made.run(listener, ending, linger_s)


def _source(flags: _Flags, client: Client | None, log: Any) -> Certificates:  # noqa: ANN401
    from modelcache.faces.webhook import shared  # noqa: PLC0415
    from modelcache.faces.webhook.tls import CertificateFiles  # noqa: PLC0415

    if flags.files is not None or client is None:
        assert flags.files is not None  # noqa: S101 - without files there is a client
        return CertificateFiles(*flags.files)
    hosts = (*shared.service_hosts(flags.service, flags.namespace), *flags.names)
    where = shared.Where(flags.namespace, flags.secret, flags.configuration, hosts)
    return shared.SharedCertificates(client, where, log)


def _warmth(flags: _Flags, client: Client | None, log: Any, stack: ExitStack) -> Warmth:  # noqa: ANN401
    from modelcache.faces.webhook.warmth import ClusterWarmth, NothingKnown  # noqa: PLC0415

    if client is None or not flags.affinity:
        return NothingKnown()
    warmth = ClusterWarmth(client, log=log)
    warmth.start()
    stack.callback(warmth.stop)
    if not warmth.wait_synced(SYNC_S):
        log.warning("nodes_unknown", message="pods get no preference for nodes until they are")
    return warmth
