"""`scaler`: what autoscalers and schedulers ask, and the statuses of ModelScale objects."""

from __future__ import annotations

import os
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

    from modelcache.faces.scaler.keda_tls import KedaFace
    from modelcache.faces.scaler.life import MetricsFace, Scaler, Writer
    from modelcache.faces.webhook.tls import Certificates

LEASE: Final = "modelcache-scaler"
NAMESPACE_VARIABLE: Final = "POD_NAMESPACE"
LISTEN: Final = "[::]:9444"
PLAIN: Final = "[::]:9872"
LINGER_S: Final = 5.0
KEDA_FILES: Final = ("--keda-cert-file", "--keda-key-file")
CHECKPOINTS: Final = "--checkpoint-every"
KEDA_AUTHORITY: Final = "--keda-client-ca-file"


@dataclass(frozen=True, slots=True)
class _Flags:
    """What was asked for, checked."""

    listen: tuple[str, int] | None
    files: tuple[Path, Path] | None
    service: str
    secret: str
    plain: tuple[str, int]
    keda: tuple[str, int] | None
    keda_files: tuple[Path, Path, Path | None] | None
    kubeconfig: str
    namespace: str
    identity: str
    prometheus: str
    token_file: Path | None
    linger_s: float
    checkpoint_s: float


@app.command()
def scaler(  # noqa: PLR0917 - one parameter for each option
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="External metrics, over HTTPS.")
    ] = LISTEN,
    cert_file: CertificateFile = None,
    key_file: KeyFile = None,
    service: Annotated[
        str,
        typer.Option(
            "--service", metavar="NAME", help="Make certificates; the Service in front of us."
        ),
    ] = "",
    secret: Annotated[
        str,
        typer.Option(
            "--secret",
            metavar="NAME",
            help=f"With --service: where replicas share them; default: SERVICE{SECRET_SUFFIX}.",
        ),
    ] = "",
    plain_listen: Annotated[
        str, typer.Option("--plain-listen", metavar="HOST:PORT", help="Probes and metrics.")
    ] = PLAIN,
    keda_listen: Annotated[
        str,
        typer.Option("--keda-listen", metavar="HOST:PORT", help="KEDA's external scaler, gRPC."),
    ] = "",
    keda_cert_file: Annotated[
        Path | None,
        typer.Option(
            KEDA_FILES[0], metavar="FILE", help="That over TLS; read again as it changes."
        ),
    ] = None,
    keda_key_file: Annotated[
        Path | None, typer.Option(KEDA_FILES[1], metavar="FILE", help="The certificate's key.")
    ] = None,
    keda_client_ca_file: Annotated[
        Path | None,
        typer.Option(
            KEDA_AUTHORITY, metavar="FILE", help="Who has to have signed KEDA's own certificate."
        ),
    ] = None,
    prometheus: Annotated[
        str,
        typer.Option("--prometheus", metavar="URL", help="Where ModelScales' queries are asked."),
    ] = "",
    prometheus_token_file: Annotated[
        Path | None,
        typer.Option("--prometheus-token-file", metavar="FILE", help="A bearer token for it."),
    ] = None,
    kubeconfig: Annotated[
        str, typer.Option("--kubeconfig", metavar="FILE", help="Cluster; default: this pod's.")
    ] = "",
    namespace: Annotated[
        str,
        typer.Option(
            "--namespace", metavar="NAME", help=f"Our own; default: ${NAMESPACE_VARIABLE}."
        ),
    ] = "",
    identity: Annotated[
        str,
        typer.Option("--identity", metavar="NAME", help="This replica; default: the host's name."),
    ] = "",
    linger: Annotated[
        str, typer.Option("--linger", metavar="5s", help="Answer so long after SIGTERM.")
    ] = f"{LINGER_S:.0f}s",
    checkpoint_every: Annotated[
        str,
        typer.Option(
            CHECKPOINTS, metavar="5m", help="Write down what was seen so often; 5s to 1h."
        ),
    ] = "5m",
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Tell autoscalers how many replicas models need, where they start warm, and how soon.

    External metrics are answered with --service, which makes certificates, or with --cert-file and
    --key-file. Any number of it may run. It ends in order on SIGTERM.
    """
    from modelcache.main.extras import needs_extra  # noqa: PLC0415 - see the package
    from modelcache.main.logs import logger_for  # noqa: PLC0415

    with needs_extra():
        from modelcache.config import parse_duration  # noqa: PLC0415
        from modelcache.domain.listening import parse_listen  # noqa: PLC0415

        files = _files(cert_file, key_file, service, secret)
        flags = _Flags(
            listen=parse_listen(listen) if files or service else None,
            files=files,
            service=_named(service),
            secret=_named(secret or (f"{service}{SECRET_SUFFIX}" if service else "")),
            plain=parse_listen(plain_listen),
            keda=parse_listen(keda_listen) if keda_listen else None,
            keda_files=_keda_files(keda_cert_file, keda_key_file, keda_client_ca_file, keda_listen),
            kubeconfig=kubeconfig,
            namespace=namespace or os.environ.get(NAMESPACE_VARIABLE, ""),
            identity=identity or f"{os.uname().nodename}-{os.getpid()}",
            prometheus=_url(prometheus),
            token_file=prometheus_token_file,
            linger_s=parse_duration(linger),
            checkpoint_s=_interval(parse_duration(checkpoint_every)),
        )
        if flags.token_file is not None and not flags.prometheus:
            raise UsageError("--prometheus-token-file is for --prometheus")
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
    certificate: Path | None, key: Path | None, service: str, secret: str
) -> tuple[Path, Path] | None:
    files = pair_of(certificate, key, made_by="--service" if service else "")
    if secret and not service:
        raise UsageError("--secret is for --service; with files it means nothing")
    return files


def _keda_files(
    certificate: Path | None, key: Path | None, authority: Path | None, listen: str
) -> tuple[Path, Path, Path | None] | None:
    files = pair_of(certificate, key, names=KEDA_FILES)
    if authority is not None and files is None:
        raise UsageError(f"{KEDA_AUTHORITY} needs {' and '.join(KEDA_FILES)}")
    if files is not None and not listen:
        raise UsageError(f"{KEDA_FILES[0]} is for --keda-listen")
    return None if files is None else (*files, authority)


def _interval(every_s: float) -> float:
    from modelcache.faces.scaler.recording import EVERY_BOUNDS_S  # noqa: PLC0415 - see the package

    least_s, most_s = EVERY_BOUNDS_S
    if not least_s <= every_s <= most_s:
        raise UsageError(f"{CHECKPOINTS} takes {least_s:.0f}s to {most_s / 3600:.0f}h")
    return every_s


def _named(name: str) -> str:
    from modelcache.domain.addresses import is_host  # noqa: PLC0415 - see the package

    if name and not is_host(name):
        raise UsageError(f"{name[:80]!r} cannot be the name of anything in a cluster")
    return name


def _url(text: str) -> str:
    from urllib.parse import urlsplit  # noqa: PLC0415 - see the package

    if not text:
        return ""
    wrong = UsageError("--prometheus takes an address such as http://prometheus.monitoring:9090")
    try:
        parts = urlsplit(text)
        fits = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError as error:
        raise wrong from error
    if not fits or parts.query or parts.fragment:
        raise wrong
    return text


def _run(flags: _Flags, log: Any) -> None:  # noqa: ANN401 - structlog's loggers have no one type
    import asyncio  # noqa: PLC0415 - half of what any command would take to start

    from modelcache.faces.controller.leading import Leading  # noqa: PLC0415 - see the package
    from modelcache.faces.kubernetes.connect import connect  # noqa: PLC0415
    from modelcache.faces.scaler.checkpoint_store import CheckpointStore  # noqa: PLC0415
    from modelcache.faces.scaler.cluster import Cluster  # noqa: PLC0415
    from modelcache.faces.scaler.demand import Demand  # noqa: PLC0415
    from modelcache.faces.scaler.life import Scaler, Writer  # noqa: PLC0415
    from modelcache.faces.scaler.scraping import Scraper  # noqa: PLC0415
    from modelcache.faces.scaler.writing import Writing  # noqa: PLC0415
    from modelcache.faces.webhook.serving import bind  # noqa: PLC0415

    with ExitStack() as stack:
        client = stack.enter_context(connect(flags.kubeconfig))
        plain = stack.enter_context(bind(*flags.plain))
        listener = stack.enter_context(bind(*flags.listen)) if flags.listen else None
        scraper = Scraper(flags.prometheus, flags.token_file)
        stack.callback(scraper.close)
        parts = Scaler(
            Cluster(client, log=log),
            Demand(scraper, log=log),
            CheckpointStore(client, log=log),
            checkpoint_every_s=flags.checkpoint_s,
            log=log,
        )

        def leading() -> Leading:
            return Leading(
                client,
                name=LEASE,
                namespace=flags.namespace or client.namespace,
                me=flags.identity,
                log=log,
            )

        writing = Writing(client, parts.cluster, parts.outlooks, parts.recording, log=log)
        writer = Writer(leading, writing)
        face = _metrics_face(flags, client, parts, listener, log) if listener else None
        asyncio.run(_serve(parts, writer, plain, face, flags, log=log))


def _metrics_face(
    flags: _Flags,
    client: Client,
    parts: Scaler,
    listener: socket.socket,
    log: Any,  # noqa: ANN401 - see above
) -> MetricsFace:
    from modelcache.faces.scaler.allowing import Allowing  # noqa: PLC0415 - see the package
    from modelcache.faces.scaler.front_proxies import FrontProxies  # noqa: PLC0415
    from modelcache.faces.scaler.life import MetricsFace  # noqa: PLC0415
    from modelcache.faces.scaler.metrics_api import MetricsApi  # noqa: PLC0415

    proxies = FrontProxies(client, log)
    api = MetricsApi(parts.outlooks, Allowing(client), parts.metrics, proxies.current, log)
    return MetricsFace(api, listener, _source(flags, client, log), proxies)


def _source(flags: _Flags, client: Client, log: Any) -> Certificates:  # noqa: ANN401
    from modelcache.faces.scaler.registering import NAME, RegisteredTrust  # noqa: PLC0415
    from modelcache.faces.webhook import shared  # noqa: PLC0415 - see the package
    from modelcache.faces.webhook.tls import CertificateFiles  # noqa: PLC0415

    if flags.files is not None:
        return CertificateFiles(*flags.files)
    namespace = flags.namespace or client.namespace
    hosts = shared.service_hosts(flags.service, namespace)
    where = shared.Where(namespace, flags.secret, NAME, hosts)
    trust = RegisteredTrust(client, flags.service, namespace, log)
    return shared.SharedCertificates(client, where, log, trust=trust)


def _keda_face(flags: _Flags) -> KedaFace | None:
    from modelcache.faces.scaler.keda_tls import KedaFace  # noqa: PLC0415 - see the package
    from modelcache.faces.webhook.tls import CertificateFiles  # noqa: PLC0415

    if flags.keda is None:
        return None
    source = CertificateFiles(*flags.keda_files) if flags.keda_files is not None else None
    return KedaFace(flags.keda, source)


async def _serve(
    parts: Scaler,
    writer: Writer,
    plain: socket.socket,
    face: MetricsFace | None,
    flags: _Flags,
    *,
    log: Any,  # noqa: ANN401
) -> None:
    import asyncio  # noqa: PLC0415 - see above

    from modelcache.faces.scaler.life import run  # noqa: PLC0415
    from modelcache.main.serving import on_signals  # noqa: PLC0415

    ending = asyncio.Event()
    on_signals(ending.set)
    await run(
        parts,
        writer,
        plain,
        face,
        log,
        keda=_keda_face(flags),
        ending=ending,
        linger_s=flags.linger_s,
    )
