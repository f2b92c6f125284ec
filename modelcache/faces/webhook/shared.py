"""Certificates that all replicas share: kept in a Secret, and trusted by the API server.

Replicas agree through the Secret alone: whoever writes it first, on the version it has read, has
decided, and the others take what is there. The bundle of the object that has the API server call us
is brought up to date before a certificate is shown, and again whenever somebody has overwritten it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import httpx2
from lightkube import ApiError, Client
from lightkube.models.meta_v1 import ObjectMeta
from lightkube.resources.admissionregistration_v1 import MutatingWebhookConfiguration
from lightkube.resources.core_v1 import Secret
from lightkube.types import PatchType

from modelcache.errors import Forbidden, InvalidConfig, SourceUnavailable
from modelcache.faces.logs import Log
from modelcache.faces.webhook.rotation import Kept, renewed
from modelcache.faces.webhook.tls import Pair

TRIES_MAX: Final = 10  # each lost try means that another replica has won one
AUTHORITY: Final = "ca.crt"
AUTHORITY_KEY: Final = "ca.key"
AUTHORITY_BEFORE: Final = "ca-before.crt"
SERVING: Final = "tls.crt"
SERVING_KEY: Final = "tls.key"
_KEYS: Final = frozenset({AUTHORITY, AUTHORITY_KEY, AUTHORITY_BEFORE, SERVING, SERVING_KEY})
_LABELS: Final = {"app.kubernetes.io/managed-by": "modelcache"}


@dataclass(frozen=True, slots=True)
class Where:
    """Objects of the cluster. hosts: under what names the API server calls us.

    configuration: the object in which the API server finds whom to trust.
    """

    namespace: str
    secret: str
    configuration: str
    hosts: tuple[str, ...]


class Trust(Protocol):
    """Has the API server trust an authority."""

    @property
    def what(self) -> str:
        """The object that says so."""
        ...

    def __call__(self, bundle: bytes) -> None:
        """Bring it up to date with this PEM. Raises what the client does."""
        ...


def service_hosts(service: str, namespace: str) -> tuple[str, ...]:
    """Names of a Service inside the cluster; the API server uses the one that ends in `.svc`."""
    return (f"{service}.{namespace}.svc", f"{service}.{namespace}", service)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class SharedCertificates:
    """See the module. One thread at a time."""

    def __init__(
        self,
        client: Client,
        where: Where,
        log: Log,
        *,
        trust: Trust | None = None,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """trust: that of a MutatingWebhookConfiguration unless it is another's."""
        self._client = client
        self._where = where
        self._trust = trust or WebhookTrust(client, where.configuration, log)
        self._now = now

    def current(self) -> Pair:
        """What to show now, renewed where that is due, and trusted.

        Raises SourceUnavailable (ask again), Forbidden (a right is missing), or InvalidConfig (the
        Secret is somebody else's).
        """
        where = self._where
        with _translated(f"Secret {where.namespace}/{where.secret}"):
            kept = self._agree()
        with _translated(self._trust.what):
            self._trust(kept.bundle(self._now()))
        return kept.serving

    def _agree(self) -> Kept:
        for _ in range(TRIES_MAX):
            secret = self._read()
            kept = None if secret is None else _kept(secret, self._where)
            fresh = renewed(kept, self._where.hosts, self._now())
            if fresh is kept or self._write(fresh, secret):
                return fresh
        raise SourceUnavailable(f"Secret {self._where.secret} changes faster than it can be read")

    def _read(self) -> Secret | None:
        try:
            return self._client.get(Secret, self._where.secret, namespace=self._where.namespace)
        except ApiError as error:
            if error.status.code == httpx2.codes.NOT_FOUND:
                return None
            raise

    def _write(self, kept: Kept, secret: Secret | None) -> bool:
        """Whether nobody else was faster."""
        where = self._where
        data = _encoded(kept)
        try:
            if secret is None:
                metadata = ObjectMeta(name=where.secret, namespace=where.namespace, labels=_LABELS)
                self._client.create(Secret(metadata=metadata, type="Opaque", data=data))
            else:
                secret.data = data
                self._client.replace(secret)  # on the version that was read
        except ApiError as error:
            if error.status.code == httpx2.codes.CONFLICT:
                return False
            raise
        return True


class WebhookTrust:
    """That of a MutatingWebhookConfiguration."""

    def __init__(self, client: Client, name: str, log: Log) -> None:
        self._client = client
        self._name = name
        self._log = log

    @property
    def what(self) -> str:
        """See Trust."""
        return f"MutatingWebhookConfiguration {self._name}"

    def __call__(self, bundle: bytes) -> None:
        """See Trust."""
        name = self._name
        try:
            found = self._client.get(MutatingWebhookConfiguration, name)
        except ApiError as error:
            if error.status.code != httpx2.codes.NOT_FOUND:
                raise
            # Installers create it last; until then nobody calls.
            self._log.warning("webhook_configuration_missing", name=name)
            return
        wanted = base64.b64encode(bundle).decode()
        patch: list[dict[str, Any]] = []
        for place, webhook in enumerate(found.webhooks or ()):
            if webhook.clientConfig.caBundle != wanted:
                path = f"/webhooks/{place}"
                patch += [
                    {"op": "test", "path": f"{path}/name", "value": webhook.name},
                    {"op": "add", "path": f"{path}/clientConfig/caBundle", "value": wanted},
                ]
        if patch:
            self._client.patch(MutatingWebhookConfiguration, name, patch, patch_type=PatchType.JSON)


def _kept(secret: Secret, where: Where) -> Kept | None:
    """What a Secret holds; None where that is nothing, or is broken. Raises InvalidConfig."""
    data = secret.data or {}
    if not data:
        return None
    if AUTHORITY_KEY not in data or not _KEYS.issuperset(data):
        raise InvalidConfig(
            f"Secret {where.namespace}/{where.secret} holds something else; name another with "
            "--secret, or delete it"
        )
    try:
        plain = {name: base64.b64decode(value) for name, value in data.items()}
        return Kept(
            Pair(plain[AUTHORITY], plain[AUTHORITY_KEY]),
            Pair(plain[SERVING], plain[SERVING_KEY]),
            plain.get(AUTHORITY_BEFORE, b""),
        )
    except (KeyError, binascii.Error):
        return None


def _encoded(kept: Kept) -> dict[str, str]:
    plain = {
        AUTHORITY: kept.authority.certificate,
        AUTHORITY_KEY: kept.authority.key,
        AUTHORITY_BEFORE: kept.before,
        SERVING: kept.serving.certificate,
        SERVING_KEY: kept.serving.key,
    }
    return {name: base64.b64encode(value).decode() for name, value in plain.items() if value}


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except ApiError as error:
        if error.status.code in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
            raise Forbidden(f"{what}: {error}") from error
        raise SourceUnavailable(f"{what}: {error}") from error
    except (httpx2.HTTPError, ValueError) as error:
        why = str(error)[:200] or type(error).__name__
        raise SourceUnavailable(f"{what}: the API server does not answer: {why}") from error
